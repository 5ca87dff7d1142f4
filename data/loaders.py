"""Data loaders for training and evaluation; order and augmentation depend on counters only."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.pipeline.dataset import Collator, EvalSamples, TrainSamples
from data.pipeline.device import Normalize, prefetch_to_device
from data.pipeline.sample import Collate, Sample, SampleTransform, stack
from data.pipeline.samplers import EvalSampler, Order, TrainSampler
from data.pipeline.workers import LoaderOptions, MonitoredLoader, check_resources
from data.sources.base import Source
from utils.batches import Batch, EpochShape
from utils.distributed.world import World
from utils.errors import DataError
from utils.preprocessing import Preprocessing
from utils.seeding import derive_seed, seed_all

# wraps batches, and may end an evaluation early
Interruptible = Callable[[Iterable[Batch]], Iterable[Batch]]


def keep(images: Any, targets: Any) -> tuple[Any, Any]:
    """Returns a batch unchanged."""
    return images, targets


@dataclass(frozen=True)
class Pipeline:
    """The task-specific steps from a source to a batch.

    `train`, `val`: convert a record to a sample; `train` is None in evaluation. `preprocessing`: normalisation on the
    device, where erased rectangles are filled according to `erase_mode` (see `Normalize`); `collate`: combines samples
    into a batch; `on_device`: mixing or masking, applied to (images, targets) of every training micro-batch once the
    global generators are seeded; `sample_bytes`: approximate size of a sample, to check shared memory, 0 if unknown;
    `order`: of the training samples of a source in an epoch, None for a permutation.
    """

    train: SampleTransform | None
    val: SampleTransform
    preprocessing: Preprocessing
    collate: Collate = stack
    on_device: Callable[[Any, Any], tuple[Any, Any]] = keep
    erase_mode: str = "pixel"
    sample_bytes: int = 0
    order: Callable[[Any], Order | None] = lambda source: None


class TrainLoader:
    """Training batches of an epoch, starting at any update.

    The constructor starts the fork server of the loader workers, which takes seconds: create it before the model.
    Raises: ResourceError if shared memory or file descriptors are insufficient.
    """

    def __init__(self, source: Source, pipeline: Pipeline, options: LoaderOptions, shape: EpochShape, world: World):
        assert pipeline.train is not None
        check_resources(options, pipeline.sample_bytes, world.local_size)
        self._shape, self._rank, self._seed = shape, world.rank, options.seed
        self._on_device = pipeline.on_device
        self._normalize = Normalize(pipeline.preprocessing, world.device, pipeline.erase_mode)
        self._sampler = TrainSampler(
            shape,
            world.rank,
            lambda epoch: derive_seed("order", options.seed, epoch),
            pipeline.order(source),
        )
        samples = TrainSamples(source, pipeline.train, seed=options.seed, on_bad=options.on_bad)
        self._loader = MonitoredLoader(
            samples, self._sampler, options, world, collate=pipeline.collate, persistent=True
        )

    def epoch(self, epoch: int, first_update: int = 0, end: int | None = None) -> Iterator[Batch]:
        """Yields the micro-batches of an epoch in order, from update `first_update` to `end` (exclusive; None: all).

        Seeds the global generators before each: for `Pipeline.on_device`, and for dropout and stochastic depth in the
        forward pass that follows.
        Raises: DataError for an unreadable sample; ResourceError if a worker died.
        """
        first = epoch * self._shape.updates
        plan = self._sampler.start(epoch, first_update, end)
        batches = prefetch_to_device(self._loader, self._normalize)
        for micro, (images, targets, samples) in zip(plan, batches, strict=True):
            seed_all("step", self._seed, first + micro.update, micro.index, self._rank)
            images, targets = self._on_device(images, targets)
            yield Batch(images, targets, samples, micro.weight, micro.ends_update)


class EvalLoader:
    """This rank's shard of an evaluation, without unreadable samples.

    Args: interruptible: wraps the batches, and may end an evaluation early. Raises: as for `TrainLoader`.
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
        """Returns the number of batches, including those without readable samples, which are not yielded."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        batches = (Batch(*each) for each in prefetch_to_device(self._loader, self._normalize))
        return iter(self._interruptible(batches))

    def sample(self, index: int) -> Sample:
        """Returns a sample of the whole dataset as the model sees it before normalisation. Raises: DataError."""
        found = self._samples[0, index]
        if not isinstance(found, Sample):
            raise found if isinstance(found, DataError) else found.bad
        return found

    def batch(self, indices: Sequence[int]) -> Batch | None:
        """Returns samples of the whole dataset as one batch on the device, without unreadable ones that are skipped;
        None if none remain. Raises: DataError."""
        collated = self._collate([self._samples[0, index] for index in indices])
        if isinstance(collated, DataError):
            raise collated
        if not collated.samples:
            return None
        return Batch(*next(prefetch_to_device([collated], self._normalize)))
