"""Masks of annotated objects, at the size of the stored image: polygons drawn as by COCO's tools, and run lengths."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.run_lengths import Mask, RunLengths

SUBPIXELS = 5  # per pixel and axis, on which the outline is traced


def object_mask(shape: Sequence[NDArray[Any]] | RunLengths, size: tuple[int, int]) -> Mask:
    """Returns the mask of an object: 1 where any of its polygons is. Args: size: height, width of the image."""
    if isinstance(shape, RunLengths):
        return shape.mask()
    mask = np.zeros(size, np.uint8)
    for points in shape:
        mask |= polygon_mask(points, size)
    return mask


def polygon_mask(points: NDArray[Any], size: tuple[int, int]) -> Mask:
    """Returns the inside of one polygon (n, 2) of x, y in pixels, bit for bit as COCO's tools draw it.

    The outline is traced on a grid of subpixels. Where it passes from one column of pixel centres to the next, the
    pixels from there on, in the order of columns, change between outside and inside.
    """
    height, width = size
    corners = np.trunc(np.asarray(points, np.float64) * SUBPIXELS + 0.5).astype(np.int64)
    u, v = np.concatenate([_line(a, b) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]).T
    moved = np.flatnonzero(u[1:] != u[:-1]) + 1
    before, after = moved - 1, moved
    x = (np.where(u[after] < u[before], u[after], u[after] - 1) + 0.5) / SUBPIXELS - 0.5
    y = np.ceil(np.clip((np.minimum(v[after], v[before]) + 0.5) / SUBPIXELS - 0.5, 0, height))
    centre = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    crossings = (x * height + y)[centre].astype(np.int64)
    flips = np.bincount(crossings, minlength=height * width + 1)[: height * width]
    return (np.cumsum(flips) % 2).astype(np.uint8).reshape(width, height).T


def _line(start: NDArray[Any], end: NDArray[Any]) -> NDArray[Any]:
    """Returns the grid points (n, 2) of a line, both ends included, one for each step along its longer axis."""
    distance = np.abs(end - start)
    axis = int(distance[0] < distance[1])  # the longer one
    steps = distance[axis]
    backwards = start[axis] > end[axis]
    first, last = (end, start) if backwards else (start, end)
    along = np.arange(steps + 1)
    slope = (last[1 - axis] - first[1 - axis]) / steps if steps else 0.0
    line = np.empty((steps + 1, 2), np.int64)
    line[:, axis] = along + first[axis]
    line[:, 1 - axis] = np.trunc(first[1 - axis] + slope * along + 0.5).astype(np.int64)
    return line[::-1] if backwards else line
