"""Segmentation heads: UPerNet (arXiv 1807.10221) and the auxiliary FCN, as released with Swin.

The parameters have the names of the released weights. Maps are (B, C, H, W), finest first; bilinear resizing never
aligns corners.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads.sync_norm import SyncBatchNorm
from utils.preprocessing import Size

POOLED = (1, 2, 3, 6)  # sides of the pooled maps


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU; the size of the map stays the same."""

    def __init__(self, channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn = SyncBatchNorm(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid down to the finest, and a classifier on all levels.

    Args: in_channels: of each map; channels: of the head; dropout: rate for whole channels before the classifier.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 512, dropout: float = 0.1):
        super().__init__()
        self.conv_seg = _classifier(channels, num_classes)
        self.dropout = nn.Dropout2d(dropout)
        top = in_channels[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvNorm(top, channels, 1)) for side in POOLED
        )
        self.bottleneck = ConvNorm(top + len(POOLED) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNorm(each, channels, 1) for each in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in in_channels[:-1])
        self.fpn_bottleneck = ConvNorm(len(in_channels) * channels, channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps the pyramid to logits (B, classes, h, w) of the finest map's size."""
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=False)]
        levels.append(self._pool(maps[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], _size(levels[i - 1]))
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=False)] + levels[-1:]
        resized = [resize(x, _size(outputs[0])) for x in outputs]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(resized, dim=1))))

    def _pool(self, x: Tensor) -> Tensor:
        pooled = [resize(module(x), _size(x)) for module in self.psp_modules]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class FCNHead(nn.Module):
    """A convolution and a classifier on one map: the auxiliary head, used in training only."""

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, dropout: float = 0.1):
        super().__init__()
        self.conv_seg = _classifier(channels, num_classes)
        self.dropout = nn.Dropout2d(dropout)
        self.convs = nn.Sequential(ConvNorm(in_channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to logits (B, classes, h, w)."""
        return self.conv_seg(self.dropout(self.convs(x)))


def resize(x: Tensor, size: Size) -> Tensor:
    """Resizes maps (B, C, H, W) to (B, C, *size), bilinear."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _size(x: Tensor) -> Size:
    return x.shape[2], x.shape[3]


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
