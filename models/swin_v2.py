"""Swin Transformer V2: "Swin Transformer V2: Scaling Up Capacity and Resolution", arXiv 2111.09883."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from models.attention import attend, no_autocast
from models.backbone import PyramidOptions, SwinBackbone
from models.layers import Linear, Mlp, PostNormMerging, as_autocast
from models.stochastic_depth import Kept, add_branch
from models.window_attention import in_windows, relative_position_index
from utils.derived import derived

MAX_SCALE = 100.0  # of the cosine similarities: a temperature of at least 0.01 (section 3.3)


@dataclass(frozen=True, kw_only=True)
class SwinV2Options(PyramidOptions):
    """`qkv_bias`: a bias on query and value; `pretrained_window_sizes`: window of each stage in pre-training, 0 for the
    model's own; `extra_norm_every`: blocks of a stage between further norms on the main branch, 0 for none: 6 in
    SwinV2-H and G, whose activations grow too large otherwise (section 3.2)."""

    SECTION: ClassVar[str] = "SWINV2"

    qkv_bias: bool = True
    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)
    extra_norm_every: int = 0

    def with_own_keys(self, section: CfgNode) -> Self:
        windows = tuple(section.PRETRAINED_WINDOW_SIZES)
        return replace(
            self,
            qkv_bias=section.QKV_BIAS,
            pretrained_window_sizes=windows,
            extra_norm_every=section.EXTRA_NORM_EVERY,
        )


def log_coordinates(window: int, pretrained_window: int) -> Tensor:
    """Returns log-spaced relative coordinates (section 3.3, equation 4), normalised to the window of pre-training.

    Args: window of the model; pretrained_window: of the weights, 0 for the same.
    Returns: float32 ((2 * window - 1)**2, 2), row-major like the tables of `relative_position_index`.
    """
    reach = max((pretrained_window or window) - 1, 1)
    axis = torch.arange(-(window - 1), window, dtype=torch.float32) * 8 / reach
    axis = axis.sign() * (axis.abs() + 1).log2() / math.log2(8)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(-1, 2)


class CosineWindowAttention(nn.Module):
    """Scaled cosine attention with a continuous position bias (section 3.3)."""

    relative_position_index: Tensor
    relative_coords_table: Tensor

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
    ):
        super().__init__()
        self.heads, self.attn_drop, self.window = heads, attn_drop, window
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, heads, bias=False))
        self.qkv = Linear(dim, 3 * dim, bias=False)
        # no bias on the keys: it would shift all scores of a query equally
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.register_buffer("relative_coords_table", torch.zeros((2 * window - 1) ** 2, 2), persistent=False)
        self.set_pretrained_window(pretrained_window)

    def set_pretrained_window(self, window: int) -> None:
        """Normalises the coordinates to the window the weights were trained with; 0 for the model's own."""
        self.pretrained_window = window or self.window
        self.relative_coords_table.copy_(log_coordinates(self.window, self.pretrained_window))

    def position_bias(self) -> Tensor:
        """Returns (heads, N, N) for the N tokens of a window, each between 0 and 16."""
        tokens = len(self.relative_position_index)
        table = self.cpb_mlp(self.relative_coords_table)
        rows = table[self.relative_position_index.flatten()]
        return 16 * rows.view(tokens, tokens, self.heads).permute(2, 0, 1).float().sigmoid()

    def _bias(self, mask: Tensor | None) -> Tensor:
        """Returns what is added to the scores: (windows or 1, heads, N, N)."""
        bias = self.position_bias()[None]
        return bias if mask is None else bias + mask[:, None]

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Maps windows (B, windows, N, C), with mask (windows, N, N) or None, to the same shape."""
        qkv_bias = None
        if self.q_bias is not None and self.v_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = self.qkv(windows, qkv_bias).unflatten(-1, (3, self.heads, -1))
        # float32: half precision loses the squares of the norm, and the scale multiplies the cosines by up to 100
        with no_autocast(windows):
            query, key = F.normalize(qkv[:, :, :, :2].float(), dim=-1).unbind(3)
            scale = self.logit_scale.clamp(max=math.log(MAX_SCALE)).exp()  # (heads, 1, 1)
            query = query * scale.view(-1, 1)
        sources = [*self.cpb_mlp.parameters(), self.relative_coords_table, *([] if mask is None else [mask])]
        bias = derived(lambda: self._bias(mask), *sources)
        dropout = self.attn_drop if self.training else 0.0
        return self.proj_drop(self.proj(attend(query, key, qkv[:, :, :, 2], bias, 1.0, dropout)))


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
        )
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio), options.drop_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3: nn.Module = nn.Identity()  # a norm of the main branch in some blocks of large models

    def _attention(self, x: Tensor) -> Tensor:
        return self.norm1(in_windows(as_autocast(x), self.window, self.shift, self.attn))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.norm2(self.mlp(x))

    def forward(self, x: Tensor, kept: Sequence[Kept] = (None, None)) -> Tensor:
        """Maps (B, H, W, C) to the same shape; `kept`: the samples that take part in each branch."""
        return self.norm3(add_branch(add_branch(x, self._attention, kept[0]), self._mlp, kept[1]))


class SwinTransformerV2(SwinBackbone):
    """SwinV2-T/S/B/L/H/G; parameter names are those of the released weights."""

    family, title, signature = "swinv2", "Swin V2", "logit_scale"
    Options = SwinV2Options

    def __init__(self, options: SwinV2Options | None = None):
        options = options or SwinV2Options()
        windows = [*options.pretrained_window_sizes, 0, 0, 0, 0]
        by_stage = [partial(SwinV2Block, pretrained_window=window, options=options) for window in windows]
        super().__init__(options, by_stage, PostNormMerging)
        self._configured = windows
        for stage in self.stages():
            every = options.extra_norm_every
            for block in stage.blocks[every - 1 :: every] if every else ():
                block.norm3 = nn.LayerNorm(block.attn.qkv.in_features)  # type: ignore[union-attr]
            # branches start at zero, like those of the released models
            for name, p in stage.blocks.named_parameters():
                if name.endswith(("norm1.weight", "norm2.weight")):
                    nn.init.zeros_(p)

    def pretrained_windows(self) -> list[int]:
        """Returns the window that each stage's coordinates are normalised to; no tensor in a checkpoint stores it."""
        return [attention[0].pretrained_window for attention in self._attentions()]

    def windows(self) -> list[int]:
        """Returns the window of each stage."""
        return [attention[0].window for attention in self._attentions()]

    def adopt_pretrained_windows(self, windows: Sequence[int]) -> bool:
        """Normalises to the windows that weights were trained with, except where the configuration sets them.

        Returns: whether anything changed.
        """
        before = self.pretrained_windows()
        for attentions, window, configured in zip(self._attentions(), windows, self._configured, strict=False):
            for attention in attentions if not configured else ():
                attention.set_pretrained_window(window)
        return self.pretrained_windows() != before

    def is_configured(self) -> bool:
        """Returns whether the configuration sets the window of pre-training of every stage."""
        return all(self._configured[: len(self.layers)])

    def _attentions(self) -> list[list[CosineWindowAttention]]:
        return [[m for m in stage.modules() if isinstance(m, CosineWindowAttention)] for stage in self.stages()]

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the parameters behind position biases and score scales, and the position embedding."""
        words = ("cpb_mlp", "logit_scale", "pos_embed")
        return {name for name, _ in self.named_parameters() if any(word in name for word in words)}
