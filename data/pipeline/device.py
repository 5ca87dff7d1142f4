"""Batches of 8-bit pixels made the model's input on its device: channels first, normalised, erased."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """What loader processes send: images uint8 (B, 3, H, W), and a row for each rectangle to erase.

    `boxes` int64 (n, 6): image in the batch, top, left, height, width, seed of what is put there.
    """

    images: Tensor
    boxes: Tensor

    def pin_memory(self) -> "Pixels":
        """Called by torch's DataLoader where the configuration asks for page-locked batches."""
        return Pixels(self.images.pin_memory(), self.boxes)


class Finish:
    """Args: channels of the model; mode: what erased rectangles hold: "pixel": normal noise, "rand": a random colour,
    "const": the mean colour."""

    def __init__(self, channels: int, device: torch.device, mode: str = "pixel"):
        self._channels, self._device, self._mode = channels, device, mode
        self._mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(IMAGENET_DEFAULT_STD, device=device).view(3, 1, 1)
        self._generator = torch.Generator(device)
        levels = torch.arange(256, dtype=torch.uint8, device=device).expand(1, 3, 1, 256)
        self._table = self._computed(levels)[0, :, 0].cpu().numpy()  # the value of each level in each channel

    @property
    def device(self) -> torch.device:
        return self._device

    def __call__(self, batch: Pixels) -> Tensor:
        """float32 (B, channels, H, W) on the device. The noise is the same for every way of batching."""
        on_cpu = self._device.type == "cpu"
        images = self._looked_up(batch.images) if on_cpu else self._computed(batch.images)
        for image, top, left, height, width, seed in batch.boxes.tolist():
            hole, noise = images[image, :, top : top + height, left : left + width], self._noise(height, width, seed)
            if on_cpu:
                hole.numpy()[:] = noise  # torch would call its threads together for it
            else:
                hole.copy_(noise)
        return fit_channels(images, self._channels)

    def _computed(self, images: Tensor) -> Tensor:
        # in torchvision's order: the very bits of the published numbers
        images = images.to(self._device, non_blocking=True).float()
        return images.div_(255).sub_(self._mean).div_(self._std)

    def _looked_up(self, images: Tensor) -> Tensor:
        """The same bits by table, in one pass and one thread: loader processes need the other cores.

        numpy's memory comes in large pages; in torch's, most of the time goes into getting the pages.
        """
        result = np.empty(images.shape, np.float32)
        for planes, filled in zip(images.numpy(), result, strict=True):
            for plane, table, out in zip(planes, self._table, filled, strict=True):
                cv2.LUT(plane, table, out)
        return torch.from_numpy(result)

    def _noise(self, height: int, width: int, seed: int) -> Tensor:
        if self._mode == "const":
            return torch.zeros(3, 1, 1, device=self._device)
        size = (3, height, width) if self._mode == "pixel" else (3, 1, 1)
        return torch.randn(size, generator=self._generator.manual_seed(seed), device=self._device)


def fit_channels(images: Tensor, channels: int) -> Tensor:
    """Colour images (B, 3, H, W) for a model of another number of input channels: their mean for one, else repeated."""
    if channels == 3:
        return images
    return images.mean(1, keepdim=True) if channels == 1 else images.repeat(1, -(-channels // 3), 1, 1)[:, :channels]


class Loaded(Protocol):
    """A batch as it comes from the loader processes (data/pipeline/dataset.py)."""

    @property
    def pixels(self) -> Pixels: ...
    @property
    def targets(self) -> Tensor: ...


def ahead(batches: Iterable[Loaded], finish: Finish) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, targets) on the device; on CUDA each batch is copied and finished while the one before it is used."""
    if finish.device.type != "cuda":
        for batch in batches:
            yield finish(batch.pixels), batch.targets.to(finish.device)
        return
    side, ready = torch.cuda.Stream(finish.device), None
    for batch in batches:
        with torch.cuda.stream(side):
            following = finish(batch.pixels), batch.targets.to(finish.device, non_blocking=True)
        if ready is not None:
            yield ready
        used = torch.cuda.current_stream(finish.device)
        used.wait_stream(side)
        for tensor in following:
            tensor.record_stream(used)  # its memory is not given to the side stream while it is used here
        ready = following
    if ready is not None:
        yield ready
