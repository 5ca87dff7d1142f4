"""From batches of 8-bit pixels to the input of the model on its device: normalised, erased, prefetched."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.preprocessing import Preprocessing


@dataclass(frozen=True)
class Pixels:
    """What loader workers send: images uint8 (B, C, H, W), and one row per rectangle to erase.

    `boxes` int64 (n, 6): image in the batch, top, left, height, width, seed of the noise.
    """

    images: Tensor
    boxes: Tensor

    def pin_memory(self) -> "Pixels":
        """Called by torch's DataLoader if batches are to be page-locked."""
        return Pixels(self.images.pin_memory(), self.boxes)


@dataclass(frozen=True)
class Collated:
    """A batch as it leaves a loader worker: targets int64 (B,); `bad`: what was wrong with samples left out."""

    pixels: Pixels
    targets: Tensor
    bad: list[str]

    def pin_memory(self) -> "Collated":
        """See `Pixels.pin_memory`."""
        return Collated(self.pixels.pin_memory(), self.targets.pin_memory(), self.bad)


class Normalize:
    """Normalises and erases whole batches on the device.

    Args: preprocessing: mean and std of each channel; erase_mode: what erased rectangles contain: "pixel": normal
    noise, "rand": one random colour, "const": the mean colour.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device, erase_mode: str = "pixel"):
        self._device, self._mode = device, erase_mode
        self._mean = torch.tensor(preprocessing.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(-1, 1, 1)
        self._generator = torch.Generator(device)
        channels = len(preprocessing.mean)
        levels = torch.arange(256, dtype=torch.uint8, device=device).expand(1, channels, 1, 256)
        self._table = self._compute(levels)[0, :, 0].cpu().numpy()  # the value of each level in each channel

    @property
    def device(self) -> torch.device:
        return self._device

    def __call__(self, batch: Pixels) -> Tensor:
        """Returns float32 (B, C, H, W) on the device. The noise does not depend on how samples are batched."""
        on_cpu = self._device.type == "cpu"
        images = self._look_up(batch.images) if on_cpu else self._compute(batch.images)
        for image, top, left, height, width, seed in batch.boxes.tolist():
            hole = images[image, :, top : top + height, left : left + width]
            noise = self._noise(len(self._mean), height, width, seed)
            if on_cpu:
                hole.numpy()[:] = noise  # torch would wake its thread pool for it
            else:
                hole.copy_(noise)
        return images

    def _compute(self, images: Tensor) -> Tensor:
        # in torchvision's order: bit-identical to the published evaluation
        images = images.to(self._device, non_blocking=self._device.type == "cuda").float()
        return images.div_(255).sub_(self._mean).div_(self._std)

    def _look_up(self, images: Tensor) -> Tensor:
        """Computes the same bits by table, in one pass and one thread: loader workers need the other cores.

        numpy allocates large pages; with torch's allocator most of the time is spent on page faults.
        """
        result = np.empty(images.shape, np.float32)
        for planes, filled in zip(images.numpy(), result, strict=True):
            for plane, table, out in zip(planes, self._table, filled, strict=True):
                cv2.LUT(plane, table, out)
        return torch.from_numpy(result)

    def _noise(self, channels: int, height: int, width: int, seed: int) -> Tensor:
        if self._mode == "const":
            return torch.zeros(channels, 1, 1, device=self._device)
        size = (channels, height, width) if self._mode == "pixel" else (channels, 1, 1)
        return torch.randn(size, generator=self._generator.manual_seed(seed), device=self._device)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the one side stream of the process: torch keeps the memory of a tensor for the stream it came from."""
    return torch.cuda.Stream(device)


def prefetch_to_device(batches: Iterable[Collated], normalize: Normalize) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (images, targets) on the device; on CUDA the next batch is copied and normalised on a side stream."""
    if normalize.device.type != "cuda":
        for batch in batches:
            yield normalize(batch.pixels), batch.targets.to(normalize.device)
        return
    side, ready = _side_stream(normalize.device), None
    for batch in batches:
        with torch.cuda.stream(side):
            following = normalize(batch.pixels), batch.targets.to(normalize.device, non_blocking=True)
        if ready is not None:
            yield ready
        current = torch.cuda.current_stream(normalize.device)
        current.wait_stream(side)
        for tensor in following:
            tensor.record_stream(current)  # the side stream must not reuse its memory while it is in use here
        ready = following
    if ready is not None:
        yield ready
