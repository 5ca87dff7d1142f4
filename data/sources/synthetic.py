"""Labelled random pixels, to measure speed without images."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from data.sources.base import LabelledSource, Record

CLASSES, SIZES = 1000, {"train": 100_000, "val": 10_000}
SIDE = 256  # pixels


class SyntheticStore:
    """Uncompressed images of random pixels, different for every sample and the same in every run."""

    def __init__(self, _path: object = ""):
        pass

    def has(self, split: str) -> bool:
        return split in SIZES

    def class_names(self, split: str) -> list[str]:
        return [str(i) for i in range(CLASSES)]

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> "SyntheticSource":
        return SyntheticSource(split, class_names or [str(i) for i in range(classes or CLASSES)])


class SyntheticSource(LabelledSource):
    """One split, generated on the fly."""

    class_names: tuple[str, ...] = ()

    def __init__(self, split: str, class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        self._part = split

    def __len__(self) -> int:
        return SIZES[self._part]

    def __getitem__(self, i: int) -> Record:
        generator = np.random.default_rng([list(SIZES).index(self._part), i])
        pixels = f"P6 {SIDE} {SIDE} 255\n".encode() + generator.bytes(SIDE * SIDE * 3)
        return Record(pixels, self.label(i), self.name(i))

    def label(self, i: int) -> int:
        return i % len(self.class_names)

    def name(self, i: int) -> str:
        return f"synthetic {self._part} image {i}"

    def counts(self) -> list[int]:
        return np.bincount(np.arange(len(self)) % len(self.class_names), minlength=len(self.class_names)).tolist()

    def fingerprint(self) -> str:
        return sha256(f"synthetic {self._part} {len(self)} {SIDE} {self.class_names}".encode()).hexdigest()
