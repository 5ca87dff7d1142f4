"""Swin Transformer V1: "Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

from torch import Tensor, nn
from yacs.config import CfgNode

from models.backbone import PyramidOptions, SwinBackbone
from models.layers import Mlp, PatchMerging
from models.ops.attend import attend, attend_on_map
from models.ops.layer_norm import LayerNorm
from models.ops.linear import Linear
from models.ops.stochastic_depth import BranchMask, add_branch
from models.ops.windows import WindowGrid
from models.position_bias import TableBias


@dataclass(frozen=True, kw_only=True)
class SwinOptions(PyramidOptions):
    """`qkv_bias`: a bias on query, key and value; `qk_scale`: factor on the scores, None for 1 / sqrt(channels per
    head)."""

    SECTION: ClassVar[str] = "SWIN"

    qkv_bias: bool = True
    qk_scale: float | None = None

    def with_own_keys(self, section: CfgNode) -> Self:
        return replace(self, qkv_bias=section.QKV_BIAS, qk_scale=section.QK_SCALE)


class WindowAttention(TableBias):
    """Multi-head self-attention within windows, with a learned bias per relative position (section 3.2)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        form: str = "auto",
    ):
        super().__init__()
        self.scale = qk_scale if qk_scale is not None else (dim // heads) ** -0.5
        self.attn_drop, self.form = attn_drop, form
        self.new_bias(heads, window)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_bias()

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Maps windows (B, windows, N, C), with mask (windows, N, N) or None, to the same shape."""
        dropout = self.attn_drop if self.training else 0.0
        mixed = attend(self.qkv(windows), self.bias(mask), self.scale, dropout, self.form)
        return self.proj_drop(self.proj(mixed))

    def attend_unpartitioned(self, x: Tensor, grid: WindowGrid) -> Tensor:
        mixed = attend_on_map(self.qkv(x), self.bias(None)[0], grid, self.scale)
        return self.proj_drop(self.proj(mixed))


class SwinBlock(nn.Module):
    """Window attention, then an MLP, each after a norm and on a residual branch (equation 3)."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float, *, options: SwinOptions):
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(
            dim,
            heads,
            window,
            qkv_bias=options.qkv_bias,
            qk_scale=options.qk_scale,
            attn_drop=options.attn_drop_rate,
            proj_drop=options.drop_rate,
            form=options.attention,
        )
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio), options.drop_rate)

    def forward(self, x: Tensor, branches: Sequence[BranchMask] = (None, None)) -> Tensor:
        """Maps (B, H, W, C) to the same shape; `branches`: the samples that keep each."""
        x = add_branch(x, lambda x: self.attn.on_map(self.norm1(x), self.shift), branches[0])
        return add_branch(x, lambda x: self.mlp(self.norm2(x)), branches[1])


class SwinTransformer(SwinBackbone):
    """Swin-T/S/B/L and any other size of the first paper; parameter names are those of the released weights."""

    family, title, signature = "swin", "Swin V1", "relative_position_bias_table"
    Options = SwinOptions

    def __init__(self, options: SwinOptions | None = None):
        options = options or SwinOptions()
        super().__init__(options, partial(SwinBlock, options=options), PatchMerging)
