"""Batches for training and evaluation, on the device, in an order and with augmentations that only counters decide."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from data.pipeline.dataset import EvalSamples, TrainSamples
from data.pipeline.device import Finish, ahead
from data.pipeline.mixing import Mixing, build_mixing
from data.pipeline.samplers import EpochShape, EvalSampler, TrainSampler
from data.pipeline.transforms import EvalTransform, TrainTransform
from data.pipeline.workers import Supervised, check_room
from data.sources.base import Source


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process; see data/pipeline/samplers.py for `weight`.

    images float32 (B, 3, H, W); targets int64 (B,), or float32 (B, classes) where samples are mixed; both on the
    device.
    """

    images: Tensor
    targets: Tensor
    weight: float
    ends_update: bool


class Split(Protocol):
    """How updates are cut up: the run's plan (utils/training/plan.py)."""

    @property
    def train_size(self) -> int: ...
    @property
    def global_batch(self) -> int: ...
    @property
    def updates_per_epoch(self) -> int: ...
    @property
    def accumulation(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


class Member(Protocol):
    """This process among all (utils/distributed.py)."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def share(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class LoaderSettings:
    """How loader processes work: `workers` of them a loader, 0 for none; `on_bad`: "error" or "skip" (see dataset.py);
    after `timeout` seconds without a batch the run ends, 0: never."""

    workers: int
    pin_memory: bool
    on_bad: str = "error"
    timeout: float = 0


@dataclass(frozen=True)
class Randomness:
    """`seed` of the run; `seed_all(purpose, *counters)` sets the global generators to an address, `seed_host` those
    of the CPU only, `derive(purpose, *counters)` gives a number for it (utils/seeding.py)."""

    seed: int
    seed_all: Callable[..., None]
    seed_host: Callable[..., None]
    derive: Callable[..., int]

    def of(self, function: Callable[..., Any], purpose: str) -> Callable[..., Any]:
        """`function` for this run and purpose; only counters are left to give."""
        return partial(function, purpose, self.seed)


class TrainLoader:
    """Training batches of an epoch, from any update of it on."""

    def __init__(
        self,
        samples: TrainSamples,
        settings: LoaderSettings,
        member: Member,
        randomness: Randomness,
        *,
        shape: EpochShape,
        mixing: Mixing | None,
        finish: Finish,
    ):
        self._shape, self._mixing = shape, mixing
        self._seed_step = randomness.of(randomness.seed_all, "step")
        self._rank, self._finish = member.rank, finish
        self._sampler = TrainSampler(shape, member.rank, randomness.of(randomness.derive, "order"))
        self._loader = Supervised(samples, self._sampler, settings, persistent=True, processes=member.size)

    def epoch(self, epoch: int, first_update: int = 0) -> Iterator[Batch]:
        """Micro-batches in order. Before each, the global generators are seeded for it: for mixing here, and for the
        dropout and stochastic depth of the forward pass that follows.

        Raises: DataError for an image that cannot be read; LoaderError for a loader process that died.
        """
        first = epoch * self._shape.updates
        plan = self._sampler.start(epoch, first_update)
        for micro, (images, targets) in zip(plan, ahead(self._loader, self._finish), strict=True):
            self._seed_step(first + micro.update, micro.number, self._rank)
            if self._mixing is not None:
                images, targets = self._mixing(images, targets)
            yield Batch(images, targets, micro.weight, micro.ends_update)


class EvalLoader:
    """The share of this process in the evaluation: (images float32 (B, 3, H, W), targets int64 (B,)) on the device.

    A target of -1 stands for an image that could not be read and does not count.
    """

    def __init__(self, samples: EvalSamples, settings: LoaderSettings, member: Member, batch_size: int, finish: Finish):
        sampler = EvalSampler(len(samples), batch_size, member.rank, member.size)
        self._length, self._finish = len(sampler), finish
        self._loader = Supervised(samples, sampler, settings, persistent=False, processes=member.size)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ahead(self._loader, self._finish)


def build_train_loader(
    source: Source,
    split: Split,
    member: Member,
    randomness: Randomness,
    *,
    transform: dict[str, Any],
    mixing: dict[str, Any],
    channels: int,
    settings: dict[str, Any],
) -> TrainLoader:
    """Args: transform: of TrainTransform; mixing: of build_mixing; channels of the model's images; settings: of
    LoaderSettings. Raises: DataError, LoaderError."""
    shape = EpochShape(
        split.train_size, split.global_batch, split.updates_per_epoch, split.accumulation, member.size, randomness.seed
    )
    working = LoaderSettings(**settings)
    check_room(working.workers, split.batch_size, transform["size"], member.share[1])
    seeds = (randomness.of(function, "sample") for function in (randomness.seed_host, randomness.derive))
    return TrainLoader(
        TrainSamples(source, TrainTransform(**transform), *seeds, on_bad=working.on_bad),
        working,
        member,
        randomness,
        shape=shape,
        mixing=build_mixing(len(source.class_names), **mixing),
        finish=Finish(channels, member.device, transform["erase"]["re_mode"]),
    )


def build_eval_loader(
    source: Source,
    member: Member,
    *,
    transform: dict[str, Any],
    channels: int,
    batch_size: int,
    settings: dict[str, Any],
) -> EvalLoader:
    """Args: transform: of EvalTransform; channels of the model's images; settings: of LoaderSettings."""
    working = LoaderSettings(**settings)
    check_room(working.workers, batch_size, transform["size"], member.share[1])
    samples = EvalSamples(source, EvalTransform(**transform), on_bad=working.on_bad)
    return EvalLoader(samples, working, member, batch_size, Finish(channels, member.device))
