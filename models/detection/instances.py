"""Sizes, annotated objects and detections of one image. Boxes are (n, 4): x1, y1, x2, y2 in pixels."""

from typing import NamedTuple

import torch
from torch import Tensor

from utils.preprocessing import Size


class Frame(NamedTuple):
    """Sizes of an image in a padded batch. `size`: of the resized image, without padding; `original`: as stored."""

    size: Size
    original: Size

    def padded(self, divisor: int) -> Size:
        """Returns the size, each side rounded up to a multiple of the divisor."""
        height, width = (-(-side // divisor) * divisor for side in self.size)
        return height, width

    def to_original(self, boxes: Tensor) -> Tensor:
        """Scales boxes (n, 4) from the resized to the original image."""
        (height, width), (full_height, full_width) = self.size, self.original
        return boxes / boxes.new_tensor([width / full_width, height / full_height] * 2)


class Objects(NamedTuple):
    """Annotated objects of one image, in the coordinates of the resized image.

    `boxes` (n, 4) float32, all non-empty; `labels` (n,) int64 from 0; `masks` (n, H, W) of 0 and 1, at the size of
    the padded batch or less, None if only boxes are annotated.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None

    @staticmethod
    def none(masks: Size | None = None, device: torch.device | None = None) -> "Objects":
        """Returns the annotation of an image without objects. Args: masks: their size, if there are masks."""
        return Objects(
            torch.zeros(0, 4, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
            None if masks is None else torch.zeros(0, *masks, dtype=torch.uint8, device=device),
        )


class Detections(NamedTuple):
    """Detected objects of one image in the coordinates of the original image, highest score first.

    `boxes` (n, 4); `scores` (n,) in 0..1; `labels` (n,) int64; `masks` (n, 28, 28): probabilities inside each box, None
    without a mask head. `paste` turns them into full-image masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def first(self, number: int) -> "Detections":
        """Returns the detections with the highest scores."""
        masks = None if self.masks is None else self.masks[:number]
        return Detections(self.boxes[:number], self.scores[:number], self.labels[:number], masks)
