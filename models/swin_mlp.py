"""Swin-MLP: V1's windows, mixed by one learned matrix per head instead of attention.

Source: the released Swin-MLP models (arXiv 2103.14030, version 2, appendix).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import PyramidOptions, SwinBackbone
from models.layers import Mlp, PatchMerging
from models.ops.stochastic_depth import BranchMask, add_branch
from models.ops.windows import WindowGrid


@dataclass(frozen=True, kw_only=True)
class SwinMlpOptions(PyramidOptions):
    """Options of Swin-MLP: only the shared ones."""

    SECTION: ClassVar[str] = "SWIN_MLP"


class SwinMlpBlock(nn.Module):
    """Mixes the tokens of a window, by one matrix per group of channels, then applies an MLP; each after a norm."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float, *, options: SwinMlpOptions):
        super().__init__()
        self.heads, self.window, self.shift, self.drop_path = heads, window, shift, drop_path
        tokens = window * window
        self.norm1 = nn.LayerNorm(dim)
        self.spatial_mlp = nn.Conv1d(heads * tokens, heads * tokens, kernel_size=1, groups=heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio), options.drop_rate)

    def _mix_tokens(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        # the shift pads all sides, so no window joins opposite edges and no mask is needed
        before = [self.window - self.shift if self.shift and side > self.window else 0 for side in (height, width)]
        after = [self.shift if lead else 0 for lead in before]
        x = F.pad(x, (0, 0, before[1], after[1], before[0], after[0]))
        grid = WindowGrid.of(x.shape[1], x.shape[2], self.window, 0)
        windows = grid.split(x)
        batch, count, tokens, _ = windows.shape
        mixed = windows.view(batch * count, tokens, self.heads, channels // self.heads).transpose(1, 2)
        mixed = self.spatial_mlp(mixed.reshape(batch * count, self.heads * tokens, -1))
        mixed = mixed.view(batch * count, self.heads, tokens, -1).transpose(1, 2).reshape(windows.shape)
        return grid.merge(mixed)[:, before[0] : before[0] + height, before[1] : before[1] + width]

    def forward(self, x: Tensor, branches: Sequence[BranchMask] = (None, None)) -> Tensor:
        """Maps (B, H, W, C) to the same shape; `branches`: samples that keep each branch."""
        x = add_branch(x, lambda x: self._mix_tokens(self.norm1(x)), branches[0])
        return add_branch(x, lambda x: self.mlp(self.norm2(x)), branches[1])


class SwinMlp(SwinBackbone):
    """Swin-MLP; parameter names match the released weights."""

    family, title, signature = "swin_mlp", "Swin-MLP", "spatial_mlp"
    Options = SwinMlpOptions

    def __init__(self, options: SwinMlpOptions | None = None):
        options = options or SwinMlpOptions()
        super().__init__(options, partial(SwinMlpBlock, options=options), PatchMerging)
        for name, parameter in self.named_parameters():  # as the released models were trained
            if name.endswith("spatial_mlp.weight"):
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("spatial_mlp.bias"):
                nn.init.zeros_(parameter)
