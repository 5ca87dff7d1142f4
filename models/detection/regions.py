"""Features of regions of interest from the levels of a pyramid (arXiv 1612.03144, equation 1; 1703.06870)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from models.detection.anchors import STRIDES
from models.detection.boxes import area, full_precision

LEVELS = 4  # the coarsest level serves the proposals alone
FINEST = 56  # side in pixels from which a region leaves the finest level


def batch_regions(boxes: Sequence[Tensor]) -> Tensor:
    """Joins the boxes (n, 4) of each image to (N, 5), the index of the image first."""
    return torch.cat([torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(boxes)])


def level_of(boxes: Tensor) -> Tensor:
    """Returns the level (n,) that serves boxes (n, 4)."""
    return (area(boxes).sqrt() / FINEST + 1e-6).log2().floor().clamp(0, LEVELS - 1).long()


def pool_regions(maps: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
    """Pools each region to side * side, in float32.

    Args: maps: of the pyramid, (B, C, H_i, W_i) each; boxes: (n, 4) for each image. Returns: (N, C, side, side).
    """
    regions = batch_regions(boxes)
    levels = level_of(regions[:, 1:])
    pooled = maps[0].new_zeros(
        len(regions), maps[0].shape[1], side, side, dtype=torch.promote_types(maps[0].dtype, torch.float32)
    )
    for i, (x, stride) in enumerate(zip(maps[:LEVELS], STRIDES, strict=False)):
        chosen = (levels == i).nonzero()[:, 0]
        x = full_precision(x)
        pooled[chosen] = roi_align(x, regions[chosen], side, 1 / stride, sampling_ratio=0, aligned=True)
    return pooled
