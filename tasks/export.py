"""Models as functions of tensors alone, which scripts/export.py writes."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Export:
    """A module to export, and how an exported function is compared with the model.

    `inputs` and `outputs`: names, in order; `trial`: what is compared. Args: size: channels, height and width of an
    image; batch: images per call, 0 for any number.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    outputs: tuple[str, ...] = ("logits",)
    trial: ClassVar[str] = "for 1 and for 8 images"

    def __init__(self, module: nn.Module, size: tuple[int, int, int], batch: int = 0):
        self.module, self.size, self.batch = module, size, batch

    def example(self, count: int) -> tuple[Tensor, ...]:
        """Returns random inputs for a number of images."""
        return (torch.randn(count, *self.size),)

    def difference(self, run: Callable[..., Any]) -> float:
        """Returns the largest difference between the outputs of a function and the model's, relative to the largest
        output; NaN if one is."""
        differences = []
        for count in (1, 8):
            images = self.example(count)
            expected = self.module(*images)
            differences.append((run(*images) - expected).abs().max() / expected.abs().max())
        return torch.stack(differences).max().item()
