"""Samples as loader processes make them: by (epoch, number), what cannot be read left out where that is wanted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.errors import DataError
from data.pipeline.device import Pixels
from data.pipeline.transforms import Prepare, Prepared
from data.sources.base import Source

TRIES = 20  # samples that may stand in for one that cannot be read
NO_LABEL = -1


class Sample(NamedTuple):
    """`bad`: what was wrong with the sample in whose place this one stands."""

    prepared: Prepared
    label: int
    bad: str = ""


class Collated(NamedTuple):
    """A batch as it leaves a loader process: targets int64 (B,)."""

    pixels: Pixels
    targets: Tensor
    bad: list[str]


Key = tuple[int, int]  # epoch, number


class TrainSamples(Dataset):
    """Each sample is prepared with generators seeded for its epoch and number alone.

    Args: seed_sample, derive: by (epoch, number, ...); on_bad: "error": an unreadable image ends the run; "skip":
    another sample, which epoch and number decide, stands in for it, with its own label.
    """

    def __init__(
        self,
        source: Source,
        prepare: Prepare,
        seed_sample: Callable[..., None],
        derive: Callable[..., int],
        *,
        on_bad: str,
    ):
        self._source, self._prepare, self._on_bad = source, prepare, on_bad
        self._seed_sample, self._derive = seed_sample, derive

    def __len__(self) -> int:
        return len(self._source)

    def name(self, number: int) -> str:
        return self._source.name(number)

    def __getitem__(self, key: Key) -> Sample | DataError:
        epoch, number = key
        try:
            return self._sample(key, number)
        except DataError as e:
            if self._on_bad != "skip":
                return e  # an exception raised here would reach the main process wrapped in a traceback
            bad = e
        for attempt in range(TRIES):
            try:
                other = self._derive(epoch, number, attempt) % len(self._source)
                return self._sample(key, other)._replace(bad=str(bad))
            except DataError:
                continue
        return DataError(f"{bad}; nor can {TRIES} others be read that were to stand in for it")

    def _sample(self, key: Key, number: int) -> Sample:
        data = self._source.read(number)
        self._seed_sample(*key)
        return Sample(self._prepare(data, self._source.name(number)), self._source.label(number))


class EvalSamples(Dataset):
    """Args: on_bad: "error": an unreadable image ends the run; "skip": it comes with `NO_LABEL` and does not count."""

    def __init__(self, source: Source, prepare: Prepare, *, on_bad: str):
        self._source, self._prepare, self._on_bad = source, prepare, on_bad

    def __len__(self) -> int:
        return len(self._source)

    def name(self, number: int) -> str:
        return self._source.name(number)

    def __getitem__(self, key: Key) -> Sample | DataError:
        number = key[1]
        try:
            data = self._source.read(number)
            return Sample(self._prepare(data, self._source.name(number)), self._source.label(number))
        except DataError as e:
            black = Prepared(np.zeros((3, self._prepare.size, self._prepare.size), np.uint8), [])
            return e if self._on_bad != "skip" else Sample(black, NO_LABEL, str(e))


def collate(samples: list[Any]) -> Collated | DataError:
    """A batch of `Sample`s; an error instead, if there is one among them."""
    error = next((sample for sample in samples if isinstance(sample, DataError)), None)
    if error is not None:
        return error
    images = np.stack([sample.prepared.pixels for sample in samples])
    boxes = [(i, *box) for i, sample in enumerate(samples) for box in sample.prepared.boxes]
    pixels = Pixels(torch.from_numpy(images), torch.tensor(boxes, dtype=torch.int64).view(-1, 6))
    labels = torch.tensor([sample.label for sample in samples])
    return Collated(pixels, labels, [sample.bad for sample in samples if sample.bad])
