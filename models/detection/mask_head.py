"""Masks of regions of interest (Mask R-CNN, arXiv 1703.06870), and masks of an image from them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from models.detection.box_head import of_class
from models.detection.boxes import full_precision
from models.detection.fpn import Conv
from models.detection.instances import Objects
from utils.preprocessing import Size

POOLED = 14  # side of a region's map
CONVS = 4
THRESHOLD = 0.5  # least probability inside a mask


class MaskHead(nn.Module):
    """Four convolutions, an upsampling and a map for each class. Args: channels: of maps and layers."""

    def __init__(self, num_classes: int, channels: int = 256):
        super().__init__()
        self.convs = nn.ModuleList(Conv(channels, channels, 3) for _ in range(CONVS))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps regions (N, C, 14, 14) to logits (N, classes, 28, 28), float32."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return full_precision(self.conv_logits(F.relu(self.upsample(x))))


def mask_targets(objects: Sequence[Objects], boxes: Sequence[Tensor], matches: Sequence[Tensor], side: int) -> Tensor:
    """Returns the objects' masks inside their regions: (P, side, side) of 0 and 1.

    Args: boxes (p, 4) and matches (p,), the index of an object, for each image.
    """
    targets = []
    for truth, box, matched in zip(objects, boxes, matches, strict=True):
        assert truth.masks is not None
        regions = torch.cat([matched[:, None].to(box.dtype), box], 1)
        pooled = roi_align(truth.masks[:, None].to(box.dtype), regions, side, 1.0, sampling_ratio=0, aligned=True)
        targets.append((pooled[:, 0] >= THRESHOLD).to(box.dtype))
    return torch.cat(targets)


def mask_loss(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Returns the binary cross-entropy of the maps of the true classes, a mean over all pixels; 0 without any.

    Args: logits (P, classes, h, w); targets (P, h, w); labels (P,).
    """
    total = F.binary_cross_entropy_with_logits(of_class(logits, labels), targets, reduction="sum")
    return total / max(1, targets.numel())


def paste(probabilities: Tensor, box: Tensor, size: Size) -> Tensor:
    """Returns the mask of one object in its image: bool of `size`.

    Only the region of the box is computed. Args: probabilities (28, 28) inside the box (4,), in pixels of the image.
    """
    (x1, y1, x2, y2), (height, width) = box.tolist(), size
    mask = torch.zeros(height, width, dtype=torch.bool, device=box.device)
    left, right = _span(x1, x2, width)
    top, bottom = _span(y1, y2, height)
    if not (x1 < x2 and y1 < y2):
        return mask
    x = (torch.arange(left, right).to(box) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(top, bottom).to(box) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    values = F.grid_sample(probabilities[None, None], grid[None], align_corners=False)
    mask[top:bottom, left:right] = values[0, 0] >= THRESHOLD
    return mask


def _span(low: float, high: float, limit: int) -> tuple[int, int]:
    """Returns the range of pixels that a side touches, with one more at each end."""
    return max(0, int(low) - 1), min(limit, int(high) + 2)
