"""Batches for training and evaluation, on the device; order and augmentation depend on counters only."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.pipeline.dataset import Collator, EvalSamples, TrainSamples
from data.pipeline.device import Normalize, prefetch_to_device
from data.pipeline.sample import Collate, Sample, SampleTransform, stack
from data.pipeline.samplers import EvalSampler, TrainSampler
from data.pipeline.workers import LoaderOptions, MonitoredLoader, check_resources
from data.sources.base import Source
from utils.batches import Batch, EpochShape
from utils.distributed.world import World
from utils.errors import DataError
from utils.preprocessing import Preprocessing
from utils.seeding import derive_seed, seed_all

# passes batches on, and may end an evaluation early
Interruptible = Callable[[Iterable[Batch]], Iterable[Batch]]


def keep(images: Any, targets: Any) -> tuple[Any, Any]:
    """Returns a batch unchanged."""
    return images, targets


@dataclass(frozen=True)
class Pipeline:
    """Everything between a source and a batch; all that the loaders know of a task.

    `train`, `val`: from a record to a sample, `train` None for an evaluation; `preprocessing`: how images are
    normalised on the device, where erased rectangles are filled by `erase_mode` (see `Normalize`); `collate`: from
    samples to a batch; `on_device`: applied to (images, targets) of every training micro-batch, with the global
    generators seeded for it: mixing, masking; `sample_bytes`: about what a sample takes, to check shared memory, 0 if
    unknown.
    """

    train: SampleTransform | None
    val: SampleTransform
    preprocessing: Preprocessing
    collate: Collate = stack
    on_device: Callable[[Any, Any], tuple[Any, Any]] = keep
    erase_mode: str = "pixel"
    sample_bytes: int = 0


class TrainLoader:
    """Training batches of an epoch, starting at any update.

    Creating one starts the server of the loader workers, which takes seconds: best done before the model is built.
    Raises: ResourceError if shared memory or file descriptors do not suffice.
    """

    def __init__(self, source: Source, pipeline: Pipeline, options: LoaderOptions, shape: EpochShape, world: World):
        assert pipeline.train is not None
        check_resources(options, pipeline.sample_bytes, world.local_size)
        self._shape, self._rank, self._seed = shape, world.rank, options.seed
        self._on_device = pipeline.on_device
        self._normalize = Normalize(pipeline.preprocessing, world.device, pipeline.erase_mode)
        self._sampler = TrainSampler(shape, world.rank, lambda epoch: derive_seed("order", options.seed, epoch))
        samples = TrainSamples(source, pipeline.train, seed=options.seed, on_bad=options.on_bad)
        self._loader = MonitoredLoader(
            samples, self._sampler, options, world, collate=pipeline.collate, persistent=True
        )

    def epoch(self, epoch: int, first_update: int = 0, end: int | None = None) -> Iterator[Batch]:
        """Yields the micro-batches of an epoch in order, from update `first_update` up to `end`, None for its last.

        The global generators are seeded before each: for `Pipeline.on_device` here, and for dropout and stochastic
        depth in the forward pass that follows.
        Raises: DataError for a sample that cannot be read; ResourceError for a worker that died.
        """
        first = epoch * self._shape.updates
        plan = self._sampler.start(epoch, first_update, end)
        batches = prefetch_to_device(self._loader, self._normalize)
        for micro, (images, targets, samples) in zip(plan, batches, strict=True):
            seed_all("step", self._seed, first + micro.update, micro.index, self._rank)
            images, targets = self._on_device(images, targets)
            yield Batch(images, targets, samples, micro.weight, micro.ends_update)


class EvalLoader:
    """This rank's shard of an evaluation, without samples that could not be read.

    Args: interruptible: passes batches on, and may end an evaluation early. Raises: as `TrainLoader`.
    """

    def __init__(
        self,
        source: Source,
        pipeline: Pipeline,
        options: LoaderOptions,
        world: World,
        interruptible: Interruptible = iter,
    ):
        check_resources(options, pipeline.sample_bytes, world.local_size)
        self.source = source
        self._samples = EvalSamples(source, pipeline.val, on_bad=options.on_bad)
        self._collate, self._interruptible = Collator(pipeline.collate), interruptible
        self._normalize = Normalize(pipeline.preprocessing, world.device)
        sampler = EvalSampler(len(source), options.batch_size, world.rank, world.size)
        self._length = len(sampler)
        self._loader = MonitoredLoader(
            self._samples, sampler, options, world, collate=pipeline.collate, persistent=False
        )

    def __len__(self) -> int:
        """Returns the number of batches; one without a readable sample is counted, but not yielded."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._interruptible(self._batches()))

    def _batches(self) -> Iterator[Batch]:
        for images, targets, samples in prefetch_to_device(self._loader, self._normalize):
            yield Batch(images, targets, samples)

    def sample(self, index: int) -> Sample:
        """Returns a sample of the whole dataset as the model sees it before normalisation. Raises: DataError."""
        found = self._samples[0, index]
        if isinstance(found, DataError):
            raise found
        if not isinstance(found, Sample):
            raise DataError(found.bad)
        return found

    def batch(self, indices: Sequence[int]) -> Batch | None:
        """Returns samples of the whole dataset as one batch on the device, without those that are skipped because they
        cannot be read; None if none is left. Raises: DataError."""
        collated = self._collate([self._samples[0, index] for index in indices])
        if isinstance(collated, DataError):
            raise collated
        if not collated.samples:
            return None
        ((images, targets, samples),) = prefetch_to_device([collated], self._normalize)
        return Batch(images, targets, samples)
