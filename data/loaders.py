"""Batches for training and evaluation, on the device, in an order and with augmentations that only counters decide."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from data.errors import DataError
from data.mixing import Mixing, build_mixing
from data.samplers import EpochShape, EvalSampler, TrainSampler
from data.source import Source
from data.transforms import Transform, decode, eval_transform, fit_channels, train_transform

# seed_all(purpose, *counters) sets the global generators; derive(purpose, *counters) gives a number
SeedAll = Callable[..., None]
Derive = Callable[..., int]


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process; see data/samplers.py for `weight`.

    images float32 (B, 3, H, W); targets int64 (B,), or float32 (B, classes) where samples are mixed; both on the
    device.
    """

    images: Tensor
    targets: Tensor
    weight: float
    ends_update: bool


@dataclass(frozen=True)
class LoaderSettings:
    """What both loaders share: `channels` of an image, `upright`: as EXIF says, `workers` processes a loader, this
    process `rank` of `world`."""

    batch_size: int
    channels: int
    upright: bool
    workers: int
    pin_memory: bool
    device: torch.device
    rank: int
    world: int


class ImageDataset(Dataset):
    """Samples by (epoch, number), each transformed with generators seeded for just that pair."""

    def __init__(
        self,
        source: Source,
        transform: Transform,
        channels: int,
        upright: bool = False,
        seed_sample: Callable[[int, int], None] | None = None,
    ):
        self._source, self._transform, self._channels, self._upright = source, transform, channels, upright
        self._seed_sample = seed_sample

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | DataError:
        epoch, index = key
        if self._seed_sample is not None:
            self._seed_sample(epoch, index)
        try:
            image = decode(self._source.read(index), self._source.name(index), self._upright)
        except DataError as e:
            return e  # an exception raised here would reach the main process wrapped in a traceback
        return fit_channels(self._transform(image), self._channels), self._source.label(index)


def _collate(samples: list[Any]) -> Any:
    bad = next((s for s in samples if isinstance(s, DataError)), None)
    return bad if bad is not None else default_collate(samples)


class TrainLoader:
    """Training batches of an epoch, from any update of it on."""

    def __init__(
        self,
        source: Source,
        transform: Transform,
        settings: LoaderSettings,
        *,
        shape: EpochShape,
        mixing: Mixing | None,
        seed_all: SeedAll,
        derive: Derive,
    ):
        self._settings, self._shape, self._mixing, self._seed_all = settings, shape, mixing, seed_all
        seed = shape.seed
        self._sampler = TrainSampler(shape, settings.rank, _Seeded(derive, "order", seed))
        dataset = ImageDataset(
            source, transform, settings.channels, settings.upright, _Seeded(seed_all, "sample", seed)
        )
        self._loader = _data_loader(dataset, self._sampler, settings, persistent=True)

    def epoch(self, epoch: int, first_update: int = 0) -> Iterator[Batch]:
        """Micro-batches in order. Before each, the global generators are seeded for it: for mixing here, and for the
        dropout and stochastic depth of the forward pass that follows.

        Raises: DataError for an image that cannot be read.
        """
        shape, rank = self._shape, self._settings.rank
        plan = self._sampler.start(epoch, first_update)
        for micro, (images, targets) in zip(plan, _on_device(self._loader, self._settings.device), strict=True):
            self._seed_all("step", shape.seed, epoch * shape.updates + micro.update, micro.number, rank)
            if self._mixing is not None:
                images, targets = self._mixing(images, targets)
            yield Batch(images, targets, micro.weight, micro.ends_update)


class EvalLoader:
    """The share of this process in the evaluation: (images float32 (B, 3, H, W), targets int64 (B,)) on the device."""

    def __init__(self, source: Source, transform: Transform, settings: LoaderSettings):
        self._settings = settings
        sampler = EvalSampler(len(source), settings.batch_size, settings.rank, settings.world)
        self._loader = _data_loader(
            ImageDataset(source, transform, settings.channels, settings.upright), sampler, settings, persistent=False
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return _on_device(self._loader, self._settings.device)


class Split(Protocol):
    """How updates are cut up: the run's plan (utils/run_plan.py)."""

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


def build_train_loader(
    source: Source,
    split: Split,
    member: Member,
    *,
    transform: dict[str, Any],
    mixing: dict[str, Any],
    channels: int,
    upright: bool,
    workers: int,
    pin_memory: bool,
    seed: int,
    seed_all: SeedAll,
    derive: Derive,
) -> TrainLoader:
    """Args: transform: of train_transform; mixing: of build_mixing. Raises: DataError."""
    shape = EpochShape(
        split.train_size, split.global_batch, split.updates_per_epoch, split.accumulation, member.size, seed
    )
    settings = LoaderSettings(
        split.batch_size, channels, upright, workers, pin_memory, member.device, member.rank, member.size
    )
    return TrainLoader(
        source,
        train_transform(**transform),
        settings,
        shape=shape,
        mixing=build_mixing(len(source.class_names), **mixing),
        seed_all=seed_all,
        derive=derive,
    )


def build_eval_loader(
    source: Source,
    member: Member,
    *,
    transform: dict[str, Any],
    channels: int,
    upright: bool,
    batch_size: int,
    workers: int,
    pin_memory: bool,
) -> EvalLoader:
    """Args: transform: of eval_transform."""
    settings = LoaderSettings(
        batch_size, channels, upright, workers, pin_memory, member.device, member.rank, member.size
    )
    return EvalLoader(source, eval_transform(**transform), settings)


@dataclass(frozen=True)
class _Seeded:
    """function(purpose, seed, ...) with the first two given; an object, so that spawned loader processes get it."""

    function: Callable[..., Any]
    purpose: str
    seed: int

    def __call__(self, *counters: int) -> Any:
        return self.function(self.purpose, self.seed, *counters)


def _data_loader(dataset: Dataset, sampler: Any, settings: LoaderSettings, persistent: bool) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=settings.workers,
        multiprocessing_context=_process_context() if settings.workers else None,
        collate_fn=_collate,
        pin_memory=settings.pin_memory and settings.device.type == "cuda",
        persistent_workers=persistent and settings.workers > 0,
        worker_init_fn=_leave_ctrl_c_to_the_main_process,
        # a generator of its own: without one, every iteration would draw from the global generator
        generator=torch.Generator(),
    )


def _process_context() -> BaseContext:
    """Workers are forked from a server process that has a single thread.

    Forked from the training process, now and then one is born while a thread of gloo or nccl holds a lock of the
    interpreter; the child has the lock but not the thread, and waits for ever.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "timm.data"])  # imported once, not by every worker
    return context


def _leave_ctrl_c_to_the_main_process(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on_device(loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for loaded in loader:
        if isinstance(loaded, DataError):
            raise loaded
        images, targets = loaded
        yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
