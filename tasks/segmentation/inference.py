"""Class maps of images of any size: whole or by a sliding window, at several scales, mirrored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from models.heads.upernet import resize
from utils.preprocessing import Size, image_size

Logits = Callable[[Tensor], Tensor]  # images (1, C, H, W) -> (1, classes, H, W)


@dataclass(frozen=True)
class InferenceOptions:
    """`window`: size of the sliding window in pixels, None for the whole image; `stride` in pixels; `flip`: average
    over mirrored images, too; `fixed`: the model takes images of the window's size only, as an exported one does:
    smaller images are padded with zeros."""

    window: Size | None = None
    stride: Size = (0, 0)
    flip: bool = False
    fixed: bool = False

    @staticmethod
    def from_config(cfg: CfgNode, exported: bool = False) -> "InferenceOptions":
        """Args: exported: whether the model is an exported one, which slides in any case."""
        test = cfg.TEST
        if test.MODE == "whole" and not exported:
            return InferenceOptions(flip=test.FLIP)
        window = image_size((exported and test.IMG_SIZE) or cfg.DATA.IMG_SIZE)
        stride = (test.STRIDE or max(1, window[0] * 2 // 3), test.STRIDE or max(1, window[1] * 2 // 3))
        return InferenceOptions(window, stride, test.FLIP, exported)


def class_map(logits_of: Logits, views: Sequence[Tensor], size: Size, options: InferenceOptions) -> Tensor:
    """Returns the most probable class of every pixel of an image, uint8 (*size).

    Logits are resized to the view, then to the image; of several views and their mirror images, the probabilities are
    averaged at the size of the image.
    Args: views: the image at each scale, (C, h, w); size: of the image.
    """
    total: Tensor | None = None
    several = len(views) > 1 or options.flip
    for view in views:
        for mirrored in (False, True) if options.flip else (False,):
            image = view[None].flip(3) if mirrored else view[None]
            logits = _logits(logits_of, image, options)
            logits = resize(logits.flip(3) if mirrored else logits, size)
            if several:
                logits = logits.softmax(1)
            total = logits if total is None else total.add_(logits)
    assert total is not None
    return total[0].argmax(0).byte()


def _logits(logits_of: Logits, image: Tensor, options: InferenceOptions) -> Tensor:
    """Returns float32 logits of the image's size: the mean over the windows that cover a pixel."""
    if options.window is None:
        return logits_of(image).float()
    height, width = image.shape[2:]
    if options.fixed:
        image = F.pad(image, (0, max(0, options.window[1] - width), 0, max(0, options.window[0] - height)))
    total: Tensor | None = None
    count = torch.zeros(())
    for rows in starts(image.shape[2], options.window[0], options.stride[0]):
        for columns in starts(image.shape[3], options.window[1], options.stride[1]):
            own = logits_of(image[:, :, rows, columns]).float()
            if total is None:
                total = own.new_zeros(1, own.shape[1], *image.shape[2:])
                count = own.new_zeros(image.shape[2:])  # on the model's device: an exported one runs on the CPU
            total[:, :, rows, columns] += own
            count[rows, columns] += 1
    assert total is not None
    return total.div_(count)[:, :, :height, :width]


def starts(side: int, window: int, stride: int) -> list[slice]:
    """Returns the windows along a side; the last one is moved inwards to end with the image."""
    steps = max(side - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, side) for i in range(steps)]
    return [slice(max(end - window, 0), end) for end in ends]
