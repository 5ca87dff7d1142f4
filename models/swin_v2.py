"""Swin Transformer V2: "Swin Transformer V2: Scaling Up Capacity and Resolution", arXiv 2111.09883."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.attention import ContinuousPositionBias, WindowAttention
from models.backbone import PyramidOptions, SwinBackbone
from models.layers import Mlp, PostNormMerging
from models.ops.linear import as_autocast
from models.ops.stochastic_depth import BranchMask, add_branch

MAX_SCALE = 100.0  # of the cosine similarities: a temperature of at least 0.01 (section 3.3)


@dataclass(frozen=True, kw_only=True)
class ContinuousOptions(PyramidOptions):
    """`pretrained_window_sizes`: window of each stage in pre-training; 0: the window of the model."""

    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)


class ContinuousBackbone(SwinBackbone):
    """Base of Swins that compute position biases from coordinates, normalised to the pre-training window.

    Args: blocks: one block factory per stage, with a keyword argument `pretrained_window`.
    """

    def __init__(
        self,
        options: ContinuousOptions,
        blocks: Sequence[Callable[..., nn.Module]],
        merging: Callable[[int], nn.Module],
    ):
        windows = [*options.pretrained_window_sizes, *[0] * len(options.depths)]
        by_stage = [partial(block, pretrained_window=w) for block, w in zip(blocks, windows, strict=False)]
        super().__init__(options, by_stage, merging)
        self._configured = windows

    def pretrained_windows(self) -> list[int]:
        """Returns the window that each stage's coordinates are normalised to; it is not stored in any tensor."""
        return [attention[0].pretrained_window for attention in self._attentions()]

    def windows(self) -> list[int]:
        """Returns the window of each stage."""
        return [attention[0].window for attention in self._attentions()]

    def adopt_pretrained_windows(self, windows: Sequence[int]) -> bool:
        """Normalises coordinates to the windows the weights were trained with, unless the configuration sets them.

        Returns: whether anything changed.
        """
        before = self.pretrained_windows()
        for attentions, window, configured in zip(self._attentions(), windows, self._configured, strict=False):
            for attention in attentions if not configured else ():
                attention.set_pretrained_window(window)
        return self.pretrained_windows() != before

    def is_configured(self) -> bool:
        """Returns whether the configuration sets the pre-training window of every stage."""
        return all(self._configured[: len(self.layers)])

    def _attentions(self) -> list[list[ContinuousPositionBias]]:
        return [[m for m in stage.modules() if isinstance(m, ContinuousPositionBias)] for stage in self.stages()]


@dataclass(frozen=True, kw_only=True)
class SwinV2Options(ContinuousOptions):
    """`qkv_bias`: a bias on query and value; `extra_norm_every`: blocks of a stage between extra norms on the main
    branch, 0 for none; 6 in SwinV2-H and G, whose activations would otherwise grow too large (section 3.2)."""

    SECTION: ClassVar[str] = "SWINV2"

    qkv_bias: bool = True
    extra_norm_every: int = 0


class CosineWindowAttention(ContinuousPositionBias, WindowAttention):
    """Scaled cosine attention with a continuous position bias (section 3.3)."""

    def __init__(self, dim: int, heads: int, window: int, shift: int = 0, *, qkv_bias: bool = True, **options: Any):
        super().__init__(dim, heads, window, shift, qkv_bias=False, **options)
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        # a bias on the keys would shift all scores of a query equally
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def project(self, x: Tensor) -> Tensor:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        return self.qkv(x, torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias]))

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines, float32 (heads,)."""
        return self.logit_scale.clamp(max=math.log(MAX_SCALE)).exp().flatten()

    def position_bias(self) -> Tensor:
        """Returns the position bias of a window of N tokens, (heads, N, N), with values between 0 and 16."""
        return 16 * super().position_bias().sigmoid()


class SwinV2Block(nn.Module):
    """V1's block with residual post-norm: each branch is normalised at its end (section 3.2)."""

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
            dim, heads, window, shift, qkv_bias=options.qkv_bias, **options.attention_arguments()
        )
        self.attn.set_pretrained_window(pretrained_window)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio), options.drop_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3: nn.Module = nn.Identity()  # a norm of the main branch in some blocks of large models

    def forward(self, x: Tensor, branches: Sequence[BranchMask] = (None, None)) -> Tensor:
        """Maps (B, H, W, C) to the same shape; `branches`: samples that keep each branch."""
        x = add_branch(x, lambda x: self.norm1(self.attn(as_autocast(x))), branches[0])
        return self.norm3(add_branch(x, lambda x: self.norm2(self.mlp(x)), branches[1]))


class SwinTransformerV2(ContinuousBackbone):
    """SwinV2-T/S/B/L/H/G; parameter names match the released weights."""

    family, title, signature = "swinv2", "Swin V2", "logit_scale"
    Options = SwinV2Options

    def __init__(self, options: SwinV2Options | None = None):
        options = options or SwinV2Options()
        super().__init__(options, [partial(SwinV2Block, options=options)] * len(options.depths), PostNormMerging)
        for stage in self.stages():
            every = options.extra_norm_every
            for block in stage.blocks[every - 1 :: every] if every else ():
                block.norm3 = nn.LayerNorm(block.attn.qkv.in_features)  # type: ignore[union-attr]
            # branches start at zero, as in the released models
            for name, p in stage.blocks.named_parameters():
                if name.endswith(("norm1.weight", "norm2.weight")):
                    nn.init.zeros_(p)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the position embedding and of the parameters of position biases and score scales."""
        words = ("cpb_mlp", "logit_scale", "pos_embed")
        return {name for name, _ in self.named_parameters() if any(word in name for word in words)}
