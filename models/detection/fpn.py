"""Feature pyramid network (arXiv 1612.03144), as released with Swin's detectors."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """Convolution with bias; the size of the map stays the same. Its layer is named `conv`, as in released weights."""

    def __init__(self, channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FPN(nn.Module):
    """Merges the maps of a backbone from coarse to fine, and adds a level of half the coarsest one's size.

    Args: in_channels: of each map; channels: of all outputs.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Conv(each, channels, 1) for each in in_channels)
        self.fpn_convs = nn.ModuleList(Conv(channels, channels, 3) for _ in in_channels)
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.xavier_uniform_(module.conv.weight)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i), finest first, to one (B, channels, H_i, W_i) each and another at twice the stride
        of the last."""
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], levels[i - 1].shape[2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]
        return [*outputs, outputs[-1][:, :, ::2, ::2]]
