"""Batches for training and evaluation, on the device; order and augmentation depend on counters only."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from data.pipeline.dataset import EvalSamples, TrainSamples
from data.pipeline.device import Normalize, Pixels, prefetch_to_device
from data.pipeline.masking import Masking, MaskingOptions
from data.pipeline.mixing import MixingOptions, build_mixing
from data.pipeline.samplers import EvalSampler, TrainSampler
from data.pipeline.transforms import EvalTransform, EvalTransformOptions, TrainTransform, TrainTransformOptions
from data.pipeline.workers import LoaderOptions, MonitoredLoader, check_resources
from data.sources.base import Source
from utils.batches import Batch, EpochShape
from utils.distributed.world import World
from utils.errors import DataError
from utils.preprocessing import Preprocessing
from utils.seeding import derive_seed, seed_all

log = logging.getLogger(__name__)

# maps (images, labels) of a micro-batch to (images, targets): mixing, masking
BatchTransform = Callable[[Tensor, Tensor], tuple[Tensor, Any]]
Guard = Callable[[Iterable[tuple[Tensor, Tensor]]], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class PipelineOptions:
    """Everything between a source and a batch. `batch`: what happens to whole batches, None for nothing."""

    seed: int
    loader: LoaderOptions
    train: TrainTransformOptions
    val: EvalTransformOptions
    preprocessing: Preprocessing
    batch: MixingOptions | MaskingOptions | None = None

    @staticmethod
    def from_config(cfg: CfgNode, channels: int, own: Preprocessing) -> "PipelineOptions":
        """Args: channels of the model's images; own: the preprocessing its published weights expect."""
        preprocessing = own.configured(cfg, channels)
        if cfg.TASK != "simmim" and own.interpolation not in ("", preprocessing.interpolation):
            log.warning(
                "the model's published weights expect %s resizing, DATA.INTERPOLATION is %s",
                own.interpolation,
                preprocessing.interpolation,
            )
        return PipelineOptions(
            seed=cfg.SEED,
            loader=LoaderOptions.from_config(cfg),
            train=TrainTransformOptions.from_config(cfg, channels),
            val=EvalTransformOptions.from_config(cfg, channels, preprocessing.crop_pct),
            preprocessing=preprocessing,
            batch=MaskingOptions.from_config(cfg) if cfg.TASK == "simmim" else MixingOptions.from_config(cfg),
        )

    def __str__(self) -> str:
        crop = f"crop {self.preprocessing.crop_pct:.4g}" if self.val.crop else "squashed, no crop"
        return f"{self.preprocessing}, {crop}"

    def batch_transform(self, classes: int) -> BatchTransform | None:
        """Returns what is applied to training batches on the device, seeded for each. Raises: ConfigError."""
        if isinstance(self.batch, MaskingOptions):
            return Masking(self.batch)
        return build_mixing(classes, self.batch, self.train.size)


class TrainLoader:
    """Training batches of an epoch, starting at any update."""

    def __init__(
        self,
        samples: TrainSamples,
        shape: EpochShape,
        options: LoaderOptions,
        world: World,
        *,
        seed: int,
        normalize: Normalize,
        transform: BatchTransform | None,
    ):
        self._shape, self._rank, self._seed = shape, world.rank, seed
        self._normalize, self._transform = normalize, transform
        self._sampler = TrainSampler(shape, world.rank, lambda epoch: derive_seed("order", seed, epoch))
        self._loader = MonitoredLoader(samples, self._sampler, options, world, persistent=True)

    def epoch(self, epoch: int, first_update: int = 0) -> Iterator[Batch]:
        """Yields micro-batches in order. The global generators are seeded before each: for the batch transform here,
        and for dropout and stochastic depth in the forward pass that follows.

        Raises: DataError for an image that cannot be read; ResourceError for a worker that died.
        """
        first = epoch * self._shape.updates
        plan = self._sampler.start(epoch, first_update)
        for micro, (images, labels) in zip(plan, prefetch_to_device(self._loader, self._normalize), strict=True):
            seed_all("step", self._seed, first + micro.update, micro.index, self._rank)
            targets: Any = labels
            if self._transform is not None:
                images, targets = self._transform(images, labels)
            yield Batch(images, targets, micro.weight, micro.ends_update, tuple(micro.samples.tolist()))


class EvalLoader:
    """This rank's shard of the evaluation: (images float32 (B, C, H, W), targets int64 (B,)) on the device.

    The target of an image that could not be read is -1; it must not be counted. `class_names` in label order; `samples`
    of all ranks; `preprocessing` of the images.
    """

    def __init__(
        self,
        samples: EvalSamples,
        class_names: Sequence[str],
        options: LoaderOptions,
        world: World,
        *,
        preprocessing: Preprocessing,
        masking: Masking | None,
        guard: Guard,
    ):
        sampler = EvalSampler(len(samples), options.batch_size, world.rank, world.size)
        self.class_names, self.samples, self.preprocessing = class_names, len(samples), preprocessing
        self._samples, self._length, self._guard, self._masking = samples, len(sampler), guard, masking
        self._normalize = Normalize(preprocessing, world.device)
        self._loader = MonitoredLoader(samples, sampler, options, world, persistent=False)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._guard(prefetch_to_device(self._loader, self._normalize)))

    def pixels(self, index: int) -> Tensor:
        """Returns a sample of the whole data set before normalisation: uint8 (C, H, W). Raises: DataError."""
        sample = self._samples[0, index]
        if isinstance(sample, DataError):
            raise sample
        return torch.from_numpy(sample.prepared.pixels)

    def normalized(self, numbers: Sequence[int]) -> Tensor:
        """Returns samples of the whole data set on the device: float32 (n, C, H, W). Raises: DataError."""
        pixels = torch.stack([self.pixels(index) for index in numbers])
        return self._normalize(Pixels(pixels, torch.zeros(0, 6, dtype=torch.int64)))

    def masks(self, numbers: Sequence[int]) -> Tensor:
        """Returns the masks of samples, the same in every evaluation: bool (n, h, w) over squares."""
        assert self._masking is not None
        return self._masking.fixed(numbers)


def build_train_loader(source: Source, shape: EpochShape, world: World, options: PipelineOptions) -> TrainLoader:
    """Starts the server of the loader workers too, which takes seconds: best called before the model is built.

    Raises: ConfigError, ResourceError.
    """
    check_resources(options.loader, options.train.size, options.train.channels, world.local_size)
    samples = TrainSamples(source, TrainTransform(options.train), seed=options.seed, on_bad=options.loader.on_bad)
    normalize = Normalize(options.preprocessing, world.device, options.train.re_mode)
    transform = options.batch_transform(len(source.class_names))
    return TrainLoader(
        samples, shape, options.loader, world, seed=options.seed, normalize=normalize, transform=transform
    )


def build_eval_loader(source: Source, world: World, options: PipelineOptions, guard: Guard = iter) -> EvalLoader:
    """Args: guard: passes batches on, and may end an evaluation early. Raises: ResourceError."""
    check_resources(options.loader, options.val.size, options.val.channels, world.local_size)
    samples = EvalSamples(source, EvalTransform(options.val), on_bad=options.loader.on_bad)
    masking = Masking(options.batch) if isinstance(options.batch, MaskingOptions) else None
    return EvalLoader(
        samples,
        source.class_names,
        options.loader,
        world,
        preprocessing=options.preprocessing,
        masking=masking,
        guard=guard,
    )
