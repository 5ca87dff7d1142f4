"""Anchors of a region proposal network: boxes of three shapes around every position of every level."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.detection.instances import Frame
from utils.preprocessing import Size

STRIDES = (4, 8, 16, 32, 64)  # of the levels, in pixels
SCALE = 8  # square root of an anchor's area, in strides
RATIOS = (0.5, 1.0, 2.0)  # height over width
PADDING = 32  # images are padded to multiples of it


def anchors_of(sizes: Sequence[Size], like: Tensor) -> list[Tensor]:
    """Returns the anchors of each level: (H * W * 3, 4), ordered by y, x, ratio, centred on (x, y) * stride.

    Args: sizes: height and width of the levels' maps; like: a tensor of their type and device.
    """
    return [_anchors(size, stride, like) for size, stride in zip(sizes, STRIDES, strict=True)]


def _anchors(size: Size, stride: int, like: Tensor) -> Tensor:
    root = torch.tensor(RATIOS).sqrt()  # float32 for any type, as in the released models
    half = torch.stack([1 / root, root], -1) * (SCALE * stride / 2)
    shapes = torch.cat([-half, half], -1).to(like)
    y, x = ((torch.arange(side, device=like.device) * stride).to(like) for side in size)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    corners = torch.stack([columns, rows, columns, rows], -1)  # (H, W, 4)
    return (corners[:, :, None] + shapes).view(-1, 4)


def usable(anchors: Sequence[Tensor], sizes: Sequence[Size], frame: Frame, inside: bool) -> list[Tensor]:
    """Returns which anchors an image trains: at positions inside the image or its padding.

    Args: sizes: of the levels' maps; inside: only anchors within the image itself.
    Returns: bool (H * W * 3,) for each level.
    """
    padded, (height, width) = frame.padded(PADDING), frame.size
    chosen = []
    for level, size, stride in zip(anchors, sizes, STRIDES, strict=True):
        mask = torch.zeros(*size, len(RATIOS), dtype=torch.bool, device=level.device)
        mask[: -(-padded[0] // stride), : -(-padded[1] // stride)] = True
        mask = mask.flatten()
        if inside:
            mask &= (level[:, :2] >= 0).all(1) & (level[:, 2] < width) & (level[:, 3] < height)
        chosen.append(mask)
    return chosen
