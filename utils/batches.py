"""The division of an epoch into updates and micro-batches, and the batch that loaders yield."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class EpochShape:
    """The updates of an epoch.

    `train_size`: samples in the dataset; `batch_size`: samples per rank and micro-batch; `accumulation`: micro-batches
    per update; `world_size`: ranks.

    An epoch has `train_size // global_batch` updates. A remainder of at least a quarter of a global batch (or a
    dataset smaller than one) is one more, smaller update; a smaller remainder is dropped for that epoch. The rule
    depends on the global batch only, so the schedule is the same for every split into ranks and micro-batches.
    """

    train_size: int
    batch_size: int
    accumulation: int
    world_size: int

    @property
    def global_batch(self) -> int:
        """Samples per update across all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def updates(self) -> int:
        """Updates per epoch."""
        whole, rest = divmod(self.train_size, self.global_batch)
        return whole + (1 if whole == 0 or 4 * rest >= self.global_batch else 0)

    @property
    def samples(self) -> int:
        """Samples used per epoch."""
        return min(self.train_size, self.updates * self.global_batch)

    def update_size(self, step: int) -> int:
        """Returns the number of samples in update `step` of an epoch, across all ranks."""
        return min(self.global_batch, self.train_size - step * self.global_batch)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank in training, or one batch of its shard in evaluation, on the rank's device.

    images float32 (B, C, H, W), or a list of (C, H, W) of different sizes; targets: task-specific, for classification
    int64 (B,) labels, or float32 (B, classes) for mixed samples; `samples`: their indices in the dataset. `weight`
    times the mean loss of the micro-batch, summed over micro-batches and averaged across ranks, is the mean loss of the
    update.
    """

    images: Tensor | list[Tensor]
    targets: Any
    samples: tuple[int, ...] = ()
    weight: float = 1.0
    ends_update: bool = True

    def __len__(self) -> int:
        return len(self.images)


def stacked(batch: Batch) -> Tensor:
    """Returns the images of a batch as one tensor (B, C, H, W). Raises: TypeError if they differ in size."""
    if not isinstance(batch.images, Tensor):
        raise TypeError("the images of the batch differ in size")
    return batch.images
