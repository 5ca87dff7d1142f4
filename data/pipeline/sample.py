"""Types of the data pipeline: samples decoded and augmented in a worker, collated, sent to the training process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.sources.base import Record
from utils.errors import DataError
from utils.nested import map_tensors

Image = NDArray[np.uint8]  # (channels, height, width)


class Erased(NamedTuple):
    """A rectangle to erase, in pixels, and the seed of the noise that fills it."""

    top: int
    left: int
    height: int
    width: int
    seed: int


class Sample(NamedTuple):
    """A decoded and augmented sample; image and target were transformed with the same random draws.

    `image` uint8 (channels, height, width), or a list of such views; `erased`: rectangles to erase on the device;
    `number`: its index in the dataset; `bad`: the error of the unreadable sample that this one replaces.
    """

    image: Image | list[Image]
    target: Any
    erased: Sequence[Erased] = ()
    number: int = -1
    bad: DataError | None = None


class Skipped(NamedTuple):
    """Placeholder for an unreadable sample in an evaluation. Args: bad: the error."""

    bad: DataError


# before each call of a training transform, the global generators are seeded from epoch and index
SampleTransform = Callable[[Record], Sample]


@dataclass(frozen=True)
class Collated:
    """A batch as it leaves a loader worker.

    `images` uint8 (B, C, H, W), or a list of (C, H, W) of different sizes; `targets`: any nesting of tensors, lists and
    dictionaries; `erased` int64 (n, 6): image in the batch, then the fields of `Erased`; `samples`: indices in the
    dataset; `bad`: errors of samples that were replaced or skipped.
    """

    images: Tensor | list[Tensor]
    targets: Any = None
    erased: Tensor = field(default_factory=lambda: torch.zeros(0, 6, dtype=torch.int64))
    samples: tuple[int, ...] = ()
    bad: tuple[DataError, ...] = ()

    def pin_memory(self) -> "Collated":
        """Copies to page-locked memory; called by torch's DataLoader."""
        images, targets = (map_tensors(value, Tensor.pin_memory) for value in (self.images, self.targets))
        return replace(self, images=images, targets=targets)


Collate = Callable[[Sequence[Sample]], Collated]


def stack(samples: Sequence[Sample]) -> Collated:
    """Stacks images of equal size, and targets that are numbers or arrays of equal shape; lists other targets."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    return Collated(images, _stacked([sample.target for sample in samples]), _erased(samples))


def as_lists(samples: Sequence[Sample]) -> Collated:
    """Keeps images of different sizes and their targets as lists."""
    images = [torch.from_numpy(np.ascontiguousarray(sample.image)) for sample in samples]
    return Collated(images, [sample.target for sample in samples], _erased(samples))


def _stacked(targets: list[Any]) -> Any:
    first = targets[0]
    if first is None:
        return None
    if isinstance(first, int | float):
        return torch.tensor(targets)
    if isinstance(first, Tensor):
        return torch.stack(targets)
    return torch.from_numpy(np.stack(targets)) if isinstance(first, np.ndarray) else targets


def _erased(samples: Sequence[Sample]) -> Tensor:
    rows = [(i, *rectangle) for i, sample in enumerate(samples) for rectangle in sample.erased]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 6)
