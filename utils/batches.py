"""The division of an epoch into updates and micro-batches, and the batch that loaders yield."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from utils.cost import input_channels
from utils.errors import ConfigError
from utils.preprocessing import Size


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

    @property
    def smallest(self) -> int:
        """Samples in the smallest micro-batch of any rank; a rank without samples repeats one."""
        rest = self.samples % (self.batch_size * self.world_size)
        return max(1, rest // self.world_size) if rest else self.batch_size

    def update_size(self, step: int) -> int:
        """Returns the number of samples in update `step` of an epoch, across all ranks."""
        return min(self.global_batch, self.train_size - step * self.global_batch)


def check_smallest_batch(model: nn.Module, shape: EpochShape, size: Size) -> None:
    """Checks that a model with BatchNorm can be trained on an epoch's smallest micro-batch, if that is one image.

    BatchNorm needs two values per channel: two images, or a map of several positions. Nothing is computed; the model
    and the random generators are unchanged.
    Args: size: image size. Raises: ConfigError.
    """
    if shape.smallest > 1 or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    training = model.training
    tensors = {name: t.detach().to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    image = torch.zeros(1, input_channels(model), *size, device="meta")
    try:
        with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"), torch.no_grad():
            functional_call(model.train(), tensors, image)
    except Exception as e:
        if "more than 1 value per channel" in str(e):  # training itself would report any other error
            problem = f"a micro-batch has one image, too few for the BatchNorm of {type(model).__name__}"
            raise ConfigError("DATA.BATCH_SIZE", problem, "choose one that leaves a larger last batch") from e
    finally:
        model.train(training)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank in training, or one batch of its shard in evaluation, on the rank's device.

    `images`: float32 (B, C, H, W), or a list of (C, H, W) of different sizes; `targets`: task-specific, in
    classification int64 (B,) labels, or float32 (B, classes) for mixed samples; `samples`: indices in the dataset.
    `weight` times the mean loss of the micro-batch, summed over micro-batches and averaged across ranks, is the mean
    loss of the update.
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
