"""Near-duplicates: one photograph stored several times, in other sizes, formats or qualities."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from data.pipeline.decoding import decode, decode_jpeg, jpeg_size, orientation
from data.sources.base import Source
from utils.errors import DataError
from utils.terminal import track

SIDE = 16  # of a thumbnail and of the pattern of differences, pixels
STEP = 3.0  # difference of neighbouring pixels below which a pattern has none: noise
ALIKE = 0.75  # cosine of the patterns of near-duplicates
LEVELS = 6.0  # mean absolute difference of their thumbnails, of 255
PLAIN = 8  # range of the values of a thumbnail below which it shows nothing
MOST = 20_000  # images that are compared in pairs; beyond it, only equal patterns are found
ROWS = 1024  # of the comparison at a time
Thumbnail = NDArray[np.uint8]


def near_duplicates(source: Source, title: str = "near-duplicates") -> list[list[int]]:
    """Returns groups of at least two samples that show one photograph, in order; unreadable images are in none."""

    def look(i: int) -> Thumbnail | None:
        try:
            return thumbnail(source[i].data, source.name(i))
        except DataError:
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release the interpreter's lock
        return similar(list(track(pool.map(look, range(len(source))), title, len(source), "images")))


def similar(thumbnails: Sequence[Thumbnail | None]) -> list[list[int]]:
    """Returns groups of at least two similar thumbnails, by index. Plain images and None are in no group.

    Candidates are found by their difference hash, and confirmed by their pixels.
    """
    kept = [i for i, each in enumerate(thumbnails) if each is not None and np.ptp(each, axis=(0, 1)).max() >= PLAIN]
    if not kept:
        return []
    pixels = np.stack([thumbnails[i] for i in kept]).astype(np.float32)  # type: ignore[misc]
    pairs = [
        (kept[one], kept[other])
        for one, other in _candidates(_patterns(pixels))
        if np.abs(pixels[one] - pixels[other]).mean() <= LEVELS
    ]
    found: dict[int, list[int]] = {}
    for i, root in enumerate(joined(len(thumbnails), pairs)):
        found.setdefault(root, []).append(i)
    return [members for members in found.values() if len(members) > 1]


def thumbnail(data: bytes, name: str) -> Thumbnail:
    """Returns a small upright version of an image, uint8 (SIDE, SIDE + 1, 3). Raises: DataError."""
    size = jpeg_size(data)
    if size is not None and min(size) >= 8 * 4 * SIDE and orientation(data) == 1:
        image = decode_jpeg(data, name, *size, reduce=8)
    else:
        image = np.asarray(decode(data, name, upright=True))
    return cv2.resize(image, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _patterns(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the signs of horizontal differences in grey, 0 for small ones, with unit norm: (n, SIDE * SIDE)."""
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    steps = np.diff(grey, axis=2).reshape(len(pixels), -1)
    signs = np.where(np.abs(steps) >= STEP, np.sign(steps), 0).astype(np.float32)
    return signs / np.maximum(np.linalg.norm(signs, axis=1, keepdims=True), 1e-6)


def _candidates(patterns: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    """Yields pairs of samples with similar patterns, the smaller index first."""
    if len(patterns) > MOST:
        _, inverse = np.unique(patterns, axis=0, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        same = inverse[order][1:] == inverse[order][:-1]
        yield from zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True)
        return
    for start in range(0, len(patterns), ROWS):
        products = patterns[start : start + ROWS] @ patterns[start:].T
        rows, columns = np.nonzero(np.triu(products >= ALIKE, k=1))
        yield from zip((rows + start).tolist(), (columns + start).tolist(), strict=True)


def joined(size: int, groups: Iterable[Iterable[int]]) -> list[int]:
    """Returns, for each number below `size`, the smallest number of its set after joining the groups."""
    sets = DisjointSet(range(size))
    for first, *others in map(list, groups):
        for other in others:
            sets.merge(first, other)
    smallest = {sets[i]: i for i in reversed(range(size))}
    return [smallest[sets[i]] for i in range(size)]
