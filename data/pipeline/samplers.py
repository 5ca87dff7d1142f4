"""Which samples every process sees, and when, as a function of counters.

An epoch is a permutation drawn from (seed, epoch). Update t takes a fixed slice of it, every micro-batch and process
a fixed slice of that. So the position of a run is one number, and the samples of an update are the same for every
number of processes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class EpochShape:
    """How an epoch is cut up.

    `updates` slices of `global_batch` samples (the last one may be smaller), each in `accumulation` micro-batches over
    `world` processes; `size` samples in the data set; `seed` of the run.
    """

    size: int
    global_batch: int
    updates: int
    accumulation: int
    world: int
    seed: int


@dataclass(frozen=True)
class MicroBatch:
    """What one process computes before the next synchronisation.

    `weight` times the mean loss of `samples`, summed over micro-batches and averaged over processes, is the mean loss
    of the update. It is 0 for a process that has no share in a small last update: it repeats one sample to keep in
    step.
    """

    update: int
    number: int
    ends_update: bool
    samples: list[int]
    weight: float


def epoch_order(size: int, seed: int) -> Tensor:
    """The permutation of one epoch: int64 (size,)."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def micro_batches(order: Tensor, shape: EpochShape, rank: int, first_update: int) -> Iterator[MicroBatch]:
    """The work of process `rank` in an epoch, from update `first_update` on."""
    for update in range(first_update, shape.updates):
        slice_ = order[update * shape.global_batch : (update + 1) * shape.global_batch]
        step = shape.global_batch // shape.accumulation
        parts = slice_.split(step)
        for number, part in enumerate(parts):
            own = part.tensor_split(shape.world)[rank]
            weight = shape.world * len(own) / len(slice_)
            samples = own if len(own) else part[:1]
            yield MicroBatch(update, number, number == len(parts) - 1, samples.tolist(), weight)


class TrainSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, sample) for a DataLoader; `start` sets where the next iteration begins.

    The epoch travels with every sample, because loader processes that live on do not see a changed attribute.
    """

    def __init__(self, shape: EpochShape, rank: int, derive_seed: Callable[[int], int]):
        self._shape, self._rank, self._derive_seed = shape, rank, derive_seed
        self._batches: list[MicroBatch] = []
        self._epoch = 0

    def start(self, epoch: int, first_update: int) -> list[MicroBatch]:
        """Go to an epoch; returns what an iteration will yield."""
        order = epoch_order(self._shape.size, self._derive_seed(epoch))
        self._epoch = epoch
        self._batches = list(micro_batches(order, self._shape, self._rank, first_update))
        return self._batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._batches:
            yield [(self._epoch, sample) for sample in batch.samples]


class EvalSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (0, sample): the share of process `rank`, every sample of the data set on exactly one process."""

    def __init__(self, size: int, batch_size: int, rank: int, world: int):
        self._own = range(rank, size, world)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._own) // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self._own), self._batch_size):
            yield [(0, sample) for sample in self._own[start : start + self._batch_size]]
