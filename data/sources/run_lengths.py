"""Run-length coding of masks as in COCO: column by column, alternating runs of 0 and 1, a run of 0 first.

Files store the lengths as a list, or as text: differences of every second length in groups of five bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]  # (height, width) of 0 and 1


class RunLengths(NamedTuple):
    """A coded mask. `size`: (height, width); `counts`: lengths of the runs."""

    size: tuple[int, int]
    counts: tuple[int, ...]

    @staticmethod
    def parsed(stored: Any) -> "RunLengths":
        """Reads the `segmentation` of an annotation. Raises: ValueError with what is wrong."""
        try:
            height, width = (int(side) for side in stored["size"])
            counts = stored["counts"]
            counts = _from_text(counts) if isinstance(counts, str | bytes) else tuple(int(count) for count in counts)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as e:
            raise ValueError("a damaged RLE") from e
        if sum(counts) != height * width or min(counts, default=0) < 0:
            raise ValueError(f"an RLE of {sum(counts)} pixels for {height} x {width}")
        return RunLengths((height, width), counts)

    @staticmethod
    def of(mask: NDArray[Any]) -> "RunLengths":
        """Codes a mask (height, width)."""
        flat = np.asarray(mask, bool).ravel(order="F")
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        edges = np.concatenate([[0], changes, [flat.size]]) if flat.size else np.zeros(1, np.int64)
        counts = tuple(np.diff(edges).tolist())
        return RunLengths((mask.shape[0], mask.shape[1]), (0, *counts) if flat.size and flat[0] else counts)

    def mask(self) -> Mask:
        """Decodes the mask."""
        height, width = self.size
        values = np.arange(len(self.counts), dtype=np.uint8) % 2
        return np.repeat(values, self.counts).reshape(width, height).T

    def text(self) -> str:
        """Returns the lengths as text, for files of results."""
        written = []
        for i, count in enumerate(self.counts):
            value = count - self.counts[i - 2] if i > 2 else count
            while True:
                bits, value = value & 31, value >> 5
                last = value == (-1 if bits & 16 else 0)  # the sign is the highest bit of the last group
                written.append(chr(48 + bits + (0 if last else 32)))
                if last:
                    break
        return "".join(written)


def _from_text(text: str | bytes) -> tuple[int, ...]:
    codes: Sequence[int] = text if isinstance(text, bytes) else text.encode("ascii")
    counts: list[int] = []
    value = shift = 0
    for code in codes:
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(code)
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("ends within a number")
    return tuple(counts)
