"""Samplers whose order is a pure function of counters.

An epoch is a permutation drawn from (seed, epoch). Update t is a fixed slice of it, which is sliced further by
micro-batch and rank. The position of a run is therefore a single number, and the samples of an update are the same
for any number of ranks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from utils.batches import EpochShape


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The samples of one rank in a micro-batch; `index`: its position in the update; `weight`: see `Batch`.

    The weight is 0 for a rank without samples in a small last update: it repeats one sample to stay synchronised.
    """

    update: int
    index: int
    ends_update: bool
    samples: Tensor  # int64 (n,)
    weight: float


Order = Callable[[int], Tensor]  # the samples of an epoch, int64 (n,), from its seed


def epoch_order(size: int, seed: int) -> Tensor:
    """Returns the permutation of one epoch: int64 (size,)."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


class Frequencies(NamedTuple):
    """`expected` float64 (n,): how often each sample is drawn in an epoch, on average, n in total; `strata` int64 (n,):
    groups of samples whose totals are also kept."""

    expected: Tensor
    strata: Tensor


def weighted_order(frequencies: Frequencies, seed: int) -> Tensor:
    """Returns the samples of one epoch, some of them repeatedly: int64 (n,).

    Systematic sampling: a sample that is expected 2.3 times is drawn two or three times, and the total of a stratum
    differs from its expected one by less than one.
    """
    generator, size = torch.Generator().manual_seed(seed), len(frequencies.expected)
    shuffled = (frequencies.strata + torch.rand(size, generator=generator, dtype=torch.float64)).argsort()
    ends = frequencies.expected[shuffled].cumsum(0)
    ends = ends * (size / ends[-1])
    ends[-1] = size  # without the rounding of the sum
    drawn = (ends + torch.rand((), generator=generator, dtype=torch.float64)).floor()
    samples = shuffled.repeat_interleave(drawn.diff(prepend=torch.zeros(1)).long())
    return samples[torch.randperm(len(samples), generator=generator)]


class Groups(NamedTuple):
    """`of` int64 (n,): the group of each sample; `unit`: successive samples of an epoch that are of one group."""

    of: Tensor
    unit: int


def grouped_order(groups: Groups, seed: int) -> Tensor:
    """Returns a permutation of one epoch whose units are of one group each, except for the last ones: int64 (n,)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(groups.of), generator=generator)
    parts = [order[groups.of[order] == group] for group in groups.of.unique()]
    whole = [own[: len(own) // groups.unit * groups.unit] for own in parts]
    rest = [own[len(taken) :] for own, taken in zip(parts, whole, strict=True)]
    units = torch.cat(whole).view(-1, groups.unit)
    return torch.cat([units[torch.randperm(len(units), generator=generator)].flatten(), *rest])


def micro_batches(order: Tensor, shape: EpochShape, rank: int, updates: range) -> Iterator[MicroBatch]:
    """Yields the micro-batches of `rank` for some updates of an epoch."""
    for update in updates:
        samples = order[update * shape.global_batch : (update + 1) * shape.global_batch]
        parts = samples.split(shape.global_batch // shape.accumulation)
        for index, part in enumerate(parts):
            own = part.tensor_split(shape.world_size)[rank]
            weight = shape.world_size * len(own) / len(samples)
            kept = own if len(own) else part[:1]
            yield MicroBatch(update, index, index == len(parts) - 1, kept, weight)


class TrainSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, sample) for a DataLoader; `start` sets where the next iteration begins.

    The epoch is part of every key because persistent workers do not see changed attributes.
    Args: order: of the samples; None: a permutation, every sample once.
    """

    def __init__(
        self,
        shape: EpochShape,
        rank: int,
        epoch_seed: Callable[[int], int],
        order: Order | None = None,
    ):
        self._shape, self._rank, self._epoch_seed = shape, rank, epoch_seed
        self._draw: Order = order or partial(epoch_order, shape.train_size)
        self._epoch, self._updates = 0, range(0)
        self._order = torch.empty(0, dtype=torch.int64)

    def start(self, epoch: int, first_update: int = 0, end: int | None = None) -> Iterator[MicroBatch]:
        """Moves to updates `first_update` to `end` (exclusive; None: all) of an epoch; returns their micro-batches."""
        self._epoch, self._updates = epoch, range(first_update, self._shape.updates if end is None else end)
        self._order = self._draw(self._epoch_seed(epoch))
        return self._plan()

    def _plan(self) -> Iterator[MicroBatch]:
        return micro_batches(self._order, self._shape, self._rank, self._updates)

    def __len__(self) -> int:
        return sum(1 for _ in self._plan())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._plan():
            yield [(self._epoch, sample) for sample in batch.samples.tolist()]


class EvalSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (0, sample) from the shard of `rank`; every sample of the dataset is on exactly one rank."""

    def __init__(self, size: int, batch_size: int, rank: int, world_size: int):
        self._own = range(rank, size, world_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._own) // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self._own), self._batch_size):
            yield [(0, sample) for sample in self._own[start : start + self._batch_size]]
