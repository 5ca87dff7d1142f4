"""Map-style datasets for the loader workers, indexed by (epoch, index); unreadable samples can be skipped."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import zeros
from torch.utils.data import Dataset

from data.pipeline.sample import Collate, Collated, Sample, SampleTransform, Skipped
from data.sources.base import Source
from utils.errors import DataError
from utils.seeding import derive_seed, seed_cpu

ATTEMPTS = 20  # replacements tried for an unreadable sample

Key = tuple[int, int]  # epoch, index


class _Samples(Dataset):
    def __init__(self, source: Source, transform: SampleTransform, *, on_bad: str):
        self._source, self._transform, self._on_bad = source, transform, on_bad

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)


class TrainSamples(_Samples):
    """Prepares each sample with generators seeded only by the seed of the run, the epoch and the index.

    Args: on_bad: "error": an unreadable sample ends the run; "skip": another sample with its target, determined by
    epoch and index, replaces it.
    """

    def __init__(self, source: Source, transform: SampleTransform, *, seed: int, on_bad: str):
        super().__init__(source, transform, on_bad=on_bad)
        self._seed = seed

    def __getitem__(self, key: Key) -> Sample | DataError:
        epoch, index = key
        try:
            return self._sample(key, index)
        except DataError as e:
            if self._on_bad != "skip":
                return e  # raised here, it would reach the main process wrapped in a traceback
            bad = DataError(*e.args)  # without the traceback, whose frames would keep memory alive
        for attempt in range(ATTEMPTS):
            try:
                other = derive_seed("sample", self._seed, epoch, index, attempt) % len(self._source)
                return self._sample(key, other)._replace(bad=bad)
            except DataError:
                continue
        problem = f"{bad.problem}; {ATTEMPTS} replacements cannot be read either"
        return DataError(bad.subject, problem, bad.remedy)

    def _sample(self, key: Key, index: int) -> Sample:
        record = self._source[index]
        seed_cpu("sample", self._seed, *key)
        return self._transform(record)._replace(number=index)


class EvalSamples(_Samples):
    """Prepares samples without randomness.

    Args: on_bad: "error": an unreadable sample ends the run; "skip": it is dropped from its batch.
    """

    def __getitem__(self, key: Key) -> Sample | Skipped | DataError:
        index = key[1]
        try:
            return self._transform(self._source[index])._replace(number=index)
        except DataError as e:
            return e if self._on_bad == "error" else Skipped(DataError(*e.args))


class Collator:
    """Collates the items of a dataset; an error among them replaces the batch."""

    def __init__(self, collate: Collate):
        self._collate = collate

    def __call__(self, samples: Sequence[Any]) -> Collated | DataError:
        error = next((sample for sample in samples if isinstance(sample, DataError)), None)
        if error is not None:
            return error
        readable = [sample for sample in samples if isinstance(sample, Sample)]
        bad = tuple(sample.bad for sample in samples if sample.bad)
        if not readable:
            return Collated(zeros(0), bad=bad)
        numbers = tuple(sample.number for sample in readable)
        return replace(self._collate(readable), samples=numbers, bad=bad)
