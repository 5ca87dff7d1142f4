"""Near-duplicates: one photograph stored several times, in other sizes, formats or qualities."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from data.pipeline.decoding import decode, decode_jpeg, jpeg_size, orientation
from data.sources.base import Source
from utils.errors import DataError
from utils.terminal import track

SIDE = 16  # of a thumbnail and of the pattern of differences, pixels
DIFFERING = 26  # bits of 256 in which patterns of near-duplicates may differ
LEVELS = 6.0  # mean absolute difference of their thumbnails, of 255
MOST = 20_000  # images that are compared in pairs; beyond it, only equal patterns are found
ROWS = 1024  # of the comparison at a time


def near_duplicates(source: Source, title: str = "near-duplicates") -> list[list[int]]:
    """Returns groups of at least two samples that show one photograph, in order; unreadable images are in none.

    Candidates are found by their difference hash, and confirmed by their thumbnails.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release the interpreter's lock
        seen = pool.map(lambda i: _thumbnail(source, i), range(len(source)))
        thumbnails = list(track(seen, title, len(source), "images"))
    readable = [i for i, thumbnail in enumerate(thumbnails) if thumbnail is not None]
    if not readable:
        return []
    pixels = np.stack([thumbnails[i] for i in readable])  # type: ignore[misc]
    sets = DisjointSets(len(source))
    for one, other in _candidates(_patterns(pixels)):
        if np.abs(pixels[one] - pixels[other]).mean() <= LEVELS:
            sets.join(readable[one], readable[other])
    return sets.groups()


def _thumbnail(source: Source, i: int) -> NDArray[np.float32] | None:
    """Returns an upright thumbnail, float32 (SIDE, SIDE + 1, 3); None for an unreadable image."""
    try:
        record = source[i]
        size = jpeg_size(record.data)
        if size is not None and min(size) >= 8 * 4 * SIDE and orientation(record.data) == 1:
            image = decode_jpeg(record.data, record.name, *size, reduce=8)
        else:
            image = np.asarray(decode(record.data, record.name, upright=True))
    except DataError:
        return None
    return cv2.resize(image, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def _patterns(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the signs of horizontal differences in grey: float32 (n, SIDE * SIDE), 1 or -1."""
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.where(np.diff(grey, axis=2) > 0, 1, -1).reshape(len(pixels), -1).astype(np.float32)


def _candidates(patterns: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    """Yields pairs of samples with similar patterns, the smaller index first."""
    if len(patterns) > MOST:
        _, inverse = np.unique(patterns > 0, axis=0, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        same = inverse[order][1:] == inverse[order][:-1]
        yield from zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True)
        return
    bits = patterns.shape[1]
    for start in range(0, len(patterns), ROWS):
        products = patterns[start : start + ROWS] @ patterns[start:].T  # bits - 2 x differing
        rows, columns = np.nonzero(np.triu(products >= bits - 2 * DIFFERING, k=1))
        yield from zip((rows + start).tolist(), (columns + start).tolist(), strict=True)


class DisjointSets:
    """A partition of the numbers below `size` that is made coarser by joining."""

    def __init__(self, size: int):
        self._parent = list(range(size))

    def root(self, i: int) -> int:
        """Returns the smallest number of the set of `i`."""
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def join(self, *members: int) -> None:
        """Unites the sets of the members."""
        roots = sorted({self.root(i) for i in members})
        for root in roots[1:]:
            self._parent[root] = roots[0]

    def groups(self) -> list[list[int]]:
        """Returns the sets of at least two numbers."""
        found: dict[int, list[int]] = {}
        for i in range(len(self._parent)):
            found.setdefault(self.root(i), []).append(i)
        return [members for members in found.values() if len(members) > 1]


def joined(size: int, groups: Sequence[Sequence[int]]) -> list[int]:
    """Returns, for each number below `size`, the smallest number of its set after joining the groups."""
    sets = DisjointSets(size)
    for members in groups:
        sets.join(*members)
    return [sets.root(i) for i in range(size)]
