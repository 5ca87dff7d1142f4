"""Swin Transformer V1: "Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from models.attention import TablePositionBias, WindowAttention
from models.backbone import PyramidOptions, SwinBackbone
from models.layers import Mlp, PatchMerging
from models.ops.layer_norm import LayerNorm
from models.ops.stochastic_depth import BranchMask, add_branch


@dataclass(frozen=True, kw_only=True)
class SwinOptions(PyramidOptions):
    """`qkv_bias`: a bias on query, key and value; `qk_scale`: factor on the scores, None for 1 / sqrt(channels per
    head)."""

    SECTION: ClassVar[str] = "SWIN"

    qkv_bias: bool = True
    qk_scale: float | None = None


class TableWindowAttention(TablePositionBias, WindowAttention):
    """Attention with a learned bias per relative position (section 3.2, equation 4)."""


class SwinBlock(nn.Module):
    """Window attention, then an MLP, each after a norm and on a residual branch (equation 3)."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float, *, options: SwinOptions):
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = LayerNorm(dim)
        self.attn = TableWindowAttention(
            *(dim, heads, window, shift),
            qkv_bias=options.qkv_bias,
            qk_scale=options.qk_scale,
            **options.attention_arguments(),
        )
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio), options.drop_rate)

    def forward(self, x: Tensor, branches: Sequence[BranchMask] = (None, None)) -> Tensor:
        """Maps (B, H, W, C) to the same shape; `branches`: samples that keep each branch."""
        x = add_branch(x, lambda x: self.attn(self.norm1(x)), branches[0])
        return add_branch(x, lambda x: self.mlp(self.norm2(x)), branches[1])


class SwinTransformer(SwinBackbone):
    """Swin-T/S/B/L and any other size of V1; parameter names match the released weights."""

    family, title, signature = "swin", "Swin V1", "relative_position_bias_table"
    Options = SwinOptions

    def __init__(self, options: SwinOptions | None = None):
        options = options or SwinOptions()
        super().__init__(options, partial(SwinBlock, options=options), PatchMerging)
