"""Swin Transformer V2: "Swin Transformer V2: Scaling Up Capacity and Resolution", arXiv 2111.09883."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from models.layers import Mlp, PostNormMerging
from models.ops.attend import attend, attend_on_map
from models.ops.linear import Linear, as_autocast
from models.ops.stochastic_depth import BranchMask, add_branch
from models.ops.windows import WindowGrid
from models.position_bias import ContinuousBackbone, ContinuousBias, ContinuousOptions

MAX_SCALE = 100.0  # of the cosine similarities: a temperature of at least 0.01 (section 3.3)


@dataclass(frozen=True, kw_only=True)
class SwinV2Options(ContinuousOptions):
    """`qkv_bias`: a bias on query and value; `extra_norm_every`: blocks of a stage between further norms on the main
    branch, 0 for none: 6 in SwinV2-H and G, whose activations grow too large otherwise (section 3.2)."""

    SECTION: ClassVar[str] = "SWINV2"

    qkv_bias: bool = True
    extra_norm_every: int = 0

    def with_own_keys(self, section: CfgNode) -> Self:
        own = super().with_own_keys(section)
        return replace(own, qkv_bias=section.QKV_BIAS, extra_norm_every=section.EXTRA_NORM_EVERY)


class CosineWindowAttention(ContinuousBias):
    """Scaled cosine attention with a continuous position bias (section 3.3)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        pretrained_window: int,
        *,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        form: str = "auto",
    ):
        super().__init__()
        self.attn_drop, self.form = attn_drop, form
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.new_bias(heads, window)
        self.qkv = Linear(dim, 3 * dim, bias=False)
        # no bias on the keys: it would shift all scores of a query equally
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.set_pretrained_window(pretrained_window)

    def position_bias(self) -> Tensor:
        """Returns (heads, N, N) for the N tokens of a window, each between 0 and 16."""
        return 16 * super().position_bias().sigmoid()

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Maps windows (B, windows, N, C), with mask (windows, N, N) or None, to the same shape."""
        dropout = self.attn_drop if self.training else 0.0
        mixed = attend(self.qkv(windows, self._qkv_bias()), self.bias(mask), self._scales(), dropout, self.form)
        return self.proj_drop(self.proj(mixed))

    def attend_unpartitioned(self, x: Tensor, grid: WindowGrid) -> Tensor:
        mixed = attend_on_map(self.qkv(x, self._qkv_bias()), self.bias(None)[0], grid, self._scales())
        return self.proj_drop(self.proj(mixed))

    def _qkv_bias(self) -> Tensor | None:
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])

    def _scales(self) -> Tensor:
        """Returns the factor of the cosines, float32 (heads,)."""
        return self.logit_scale.clamp(max=math.log(MAX_SCALE)).exp().flatten()


class SwinV2Block(nn.Module):
    """Like V1's block, but each branch is normalised at its end: residual post-norm (section 3.2)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shift: int,
        drop_path: float,
        *,
        pretrained_window: int,
        options: SwinV2Options,
    ):
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.attn = CosineWindowAttention(
            dim,
            heads,
            window,
            pretrained_window,
            qkv_bias=options.qkv_bias,
            attn_drop=options.attn_drop_rate,
            proj_drop=options.drop_rate,
            form=options.attention,
        )
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio), options.drop_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3: nn.Module = nn.Identity()  # a norm of the main branch in some blocks of large models

    def _attention(self, x: Tensor) -> Tensor:
        return self.norm1(self.attn.on_map(as_autocast(x), self.shift))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.norm2(self.mlp(x))

    def forward(self, x: Tensor, branches: Sequence[BranchMask] = (None, None)) -> Tensor:
        """Maps (B, H, W, C) to the same shape; `branches`: the samples that keep each."""
        return self.norm3(add_branch(add_branch(x, self._attention, branches[0]), self._mlp, branches[1]))


class SwinTransformerV2(ContinuousBackbone):
    """SwinV2-T/S/B/L/H/G; parameter names are those of the released weights."""

    family, title, signature = "swinv2", "Swin V2", "logit_scale"
    Options = SwinV2Options

    def __init__(self, options: SwinV2Options | None = None):
        options = options or SwinV2Options()
        super().__init__(options, [partial(SwinV2Block, options=options)] * len(options.depths), PostNormMerging)
        for stage in self.stages():
            every = options.extra_norm_every
            for block in stage.blocks[every - 1 :: every] if every else ():
                block.norm3 = nn.LayerNorm(block.attn.qkv.in_features)  # type: ignore[union-attr]
            # branches start at zero, like those of the released models
            for name, p in stage.blocks.named_parameters():
                if name.endswith(("norm1.weight", "norm2.weight")):
                    nn.init.zeros_(p)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the parameters behind position biases and score scales, and the position embedding."""
        words = ("cpb_mlp", "logit_scale", "pos_embed")
        return {name for name, _ in self.named_parameters() if any(word in name for word in words)}
