"""Samples as loader workers prepare them, by (epoch, index); unreadable ones can be left out."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from data.pipeline.device import Collated, Pixels
from data.pipeline.transforms import Prepare, Prepared
from data.sources.base import Source
from utils.errors import DataError
from utils.seeding import derive_seed, seed_cpu

ATTEMPTS = 20  # samples that may replace one that cannot be read
NO_LABEL = -1


class Sample(NamedTuple):
    """A prepared sample; `bad`: what was wrong with the sample it replaces."""

    prepared: Prepared
    label: int
    bad: str = ""


Key = tuple[int, int]  # epoch, index


class TrainSamples(Dataset):
    """Prepares each sample with generators seeded by the run's seed, its epoch and its index alone.

    Args: on_bad: "error": an unreadable image ends the run; "skip": another sample, determined by epoch and index,
    replaces it, with its own label.
    """

    def __init__(self, source: Source, prepare: Prepare, *, seed: int, on_bad: str):
        self._source, self._prepare, self._seed, self._on_bad = source, prepare, seed, on_bad

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def __getitem__(self, key: Key) -> Sample | DataError:
        epoch, index = key
        try:
            return self._sample(key, index)
        except DataError as e:
            if self._on_bad != "skip":
                return e  # raised here, it would reach the main process wrapped in a traceback
            bad = e
        for attempt in range(ATTEMPTS):
            try:
                other = derive_seed("sample", self._seed, epoch, index, attempt) % len(self._source)
                return self._sample(key, other)._replace(bad=str(bad))
            except DataError:
                continue
        return DataError(f"{bad}; {ATTEMPTS} samples that could replace it cannot be read either")

    def _sample(self, key: Key, index: int) -> Sample:
        data = self._source.read(index)
        seed_cpu("sample", self._seed, *key)
        return Sample(self._prepare(data, self._source.name(index)), self._source.label(index))


class EvalSamples(Dataset):
    """Prepares samples without randomness.

    Args: on_bad: "error": an unreadable image ends the run; "skip": it comes with `NO_LABEL` and is not counted.
    """

    def __init__(self, source: Source, prepare: Prepare, *, on_bad: str):
        self._source, self._prepare, self._on_bad = source, prepare, on_bad

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def __getitem__(self, key: Key) -> Sample | DataError:
        index = key[1]
        try:
            data = self._source.read(index)
            return Sample(self._prepare(data, self._source.name(index)), self._source.label(index))
        except DataError as e:
            black = Prepared(np.zeros((self._prepare.channels, *self._prepare.size), np.uint8), [])
            return e if self._on_bad == "error" else Sample(black, NO_LABEL, str(e))


def collate(samples: list[Any]) -> Collated | DataError:
    """Collates a batch of `Sample`s; returns the error instead if there is one among them."""
    error = next((sample for sample in samples if isinstance(sample, DataError)), None)
    if error is not None:
        return error
    images = np.stack([sample.prepared.pixels for sample in samples])
    boxes = [(i, *box) for i, sample in enumerate(samples) for box in sample.prepared.boxes]
    pixels = Pixels(torch.from_numpy(images), torch.tensor(boxes, dtype=torch.int64).view(-1, 6))
    labels = torch.tensor([sample.label for sample in samples])
    return Collated(pixels, labels, [sample.bad for sample in samples if sample.bad])
