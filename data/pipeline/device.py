"""Converts batches of 8-bit pixels to model input on the device: normalisation, random erasing, prefetching."""

from collections.abc import Iterable, Iterator
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from data.pipeline.sample import Collated
from utils.nested import map_tensors
from utils.preprocessing import Preprocessing


class Normalize:
    """Normalises and erases whole batches on the device.

    Args: preprocessing: mean and std of each channel; erase_mode: filling of erased rectangles: "pixel": normal noise,
    "rand": one random colour, "const": the mean colour.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device, erase_mode: str = "pixel"):
        self._device, self._mode = device, erase_mode
        self._mean = torch.tensor(preprocessing.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(-1, 1, 1)
        self._generator = torch.Generator(device)
        channels = len(preprocessing.mean)
        levels = torch.arange(256, dtype=torch.uint8, device=device).expand(1, channels, 1, 256)
        self._table = self._compute(levels)[0, :, 0].cpu().numpy()  # (channels, 256)

    @property
    def device(self) -> torch.device:
        return self._device

    def __call__(self, batch: Collated) -> Tensor | list[Tensor]:
        """Returns float32 (B, C, H, W) on the device, or a list of (C, H, W).

        The noise does not depend on how samples are batched.
        """
        if isinstance(batch.images, Tensor):
            images: Tensor | list[Tensor] = self._normalized(batch.images)
        else:
            images = [self._normalized(image[None])[0] for image in batch.images]
        for image, top, left, height, width, seed in batch.erased.tolist():
            hole = images[image][:, top : top + height, left : left + width]
            noise = self._noise(len(self._mean), height, width, seed)
            if self._device.type == "cpu":
                hole.numpy()[:] = noise  # torch would wake up its thread pool
            else:
                hole.copy_(noise)
        return images

    def _normalized(self, images: Tensor) -> Tensor:
        return self._look_up(images) if self._device.type == "cpu" else self._compute(images)

    def _compute(self, images: Tensor) -> Tensor:
        # in torchvision's order: bit-identical to the published evaluation
        images = images.to(self._device, non_blocking=self._device.type == "cuda").float()
        return images.div_(255).sub_(self._mean).div_(self._std)

    def _look_up(self, images: Tensor) -> Tensor:
        """Computes the same values by table look-up, in one pass and one thread: loader workers need the other cores.

        NumPy allocates large pages; with torch's allocator, page faults would dominate.
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
    """Returns the side stream of the process, always the same one: torch's allocator caches memory per stream."""
    return torch.cuda.Stream(device)


def prefetch_to_device(batches: Iterable[Collated], normalize: Normalize) -> Iterator[tuple[Any, Any, tuple[int, ...]]]:
    """Yields (images, targets, sample indices) on the device; drops batches without readable samples.

    On CUDA the next batch is copied and normalised on a side stream.
    """
    device = normalize.device
    if device.type != "cuda":
        for batch in batches:
            if batch.samples:
                yield normalize(batch), map_tensors(batch.targets, lambda t: t.to(device)), batch.samples
        return
    side, ready = _side_stream(device), None
    for batch in batches:
        if not batch.samples:
            continue
        with torch.cuda.stream(side):
            images, targets = normalize(batch), map_tensors(batch.targets, lambda t: t.to(device, non_blocking=True))
        if ready is not None:
            yield ready
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        # the side stream must not reuse this memory while it is in use on the current one
        map_tensors((images, targets), partial(Tensor.record_stream, s=current))
        ready = images, targets, batch.samples
    if ready is not None:
        yield ready
