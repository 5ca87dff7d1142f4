"""What attention within windows adds to its scores: a bias for every pair of tokens, and the mask of shifted windows.

V1 learns a table of biases; V2 and Swin-MoE compute it from log-spaced coordinates, which fit any window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from models.backbone import PyramidOptions, SwinBackbone
from models.ops.attend import takes_kernel
from models.ops.linear import has_hooks
from models.ops.windows import WindowGrid, in_windows, relative_position_index
from utils.eval_cache import derived


class WindowBias(nn.Module):
    """Attention with a bias for every pair of tokens in a window; the base of those below."""

    heads: int
    window: int
    relative_position_index: Tensor
    attn_drop: float = 0.0
    form: str = "auto"  # one of `models.ops.attend.FORMS`

    def new_bias(self, heads: int, window: int) -> None:
        """Adds what the bias is computed from."""
        self.heads, self.window = heads, window
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.add_parameters(heads, window)

    def add_parameters(self, heads: int, window: int) -> None:
        """Adds the parameters behind the bias."""
        raise NotImplementedError

    def reset_bias(self) -> None:
        """Initialises the parameters that no layer initialises."""

    def position_bias(self) -> Tensor:
        """Returns (heads, N, N) for the N tokens of a window."""
        raise NotImplementedError

    def bias_sources(self) -> list[Tensor]:
        """Returns what the bias is computed from."""
        raise NotImplementedError

    def on_map(self, x: Tensor, shift: int) -> Tensor:
        """Maps (B, H, W, C) to the same shape: attends in the (shifted) windows of the map."""
        dropout = self.attn_drop if self.training else 0.0
        if has_hooks(self) or not takes_kernel(self.form, x, self.window**2, x.shape[-1] // self.heads, dropout):
            return in_windows(x, self.window, shift, self)
        grid = WindowGrid.of(x.shape[1], x.shape[2], self.window, shift)
        return grid.crop(self.attend_unpartitioned(grid.pad(x), grid))

    def attend_unpartitioned(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """Maps (B, *grid.padded, C) to the same shape: what `forward` computes for the windows of `grid`."""
        raise NotImplementedError

    def by_pair(self, table: Tensor) -> Tensor:
        """Looks up the offset of every pair of tokens in a table (offsets, heads): (heads, N, N)."""
        tokens = len(self.relative_position_index)
        rows = table[self.relative_position_index.flatten()]
        return rows.view(tokens, tokens, self.heads).permute(2, 0, 1)

    def bias(self, mask: Tensor | None) -> Tensor:
        """Returns what is added to the scores, (windows or 1, heads, N, N), given a mask (windows, N, N) or None."""
        sources = [*self.bias_sources(), *([] if mask is None else [mask])]
        return derived(lambda: self._with_mask(mask), *sources)

    def _with_mask(self, mask: Tensor | None) -> Tensor:
        bias = self.position_bias()[None]
        return bias if mask is None else bias + mask[:, None]


class TableBias(WindowBias):
    """A learned bias per relative position (arXiv 2103.14030, section 3.2)."""

    def add_parameters(self, heads: int, window: int) -> None:
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def reset_bias(self) -> None:
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        return self.by_pair(self.relative_position_bias_table)

    def bias_sources(self) -> list[Tensor]:
        return [self.relative_position_bias_table]


class ContinuousBias(WindowBias):
    """A bias computed by a small network from log-spaced relative coordinates (arXiv 2111.09883, section 3.3)."""

    relative_coords_table: Tensor

    def add_parameters(self, heads: int, window: int) -> None:
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, heads, bias=False))
        self.register_buffer("relative_coords_table", torch.zeros((2 * window - 1) ** 2, 2), persistent=False)
        self.set_pretrained_window(0)

    def reset_bias(self) -> None:
        """Does nothing: all parameters are those of layers."""

    def set_pretrained_window(self, window: int) -> None:
        """Normalises the coordinates to the window the weights were trained with; 0 for the model's own."""
        self.pretrained_window = window or self.window
        self.relative_coords_table.copy_(log_coordinates(self.window, self.pretrained_window))

    def position_bias(self) -> Tensor:
        return self.by_pair(self.cpb_mlp(self.relative_coords_table)).float()

    def bias_sources(self) -> list[Tensor]:
        return [*self.cpb_mlp.parameters(), self.relative_coords_table]


def log_coordinates(window: int, pretrained_window: int) -> Tensor:
    """Returns log-spaced relative coordinates (section 3.3, equation 4), normalised to the window of pre-training.

    Args: window of the model; pretrained_window: of the weights, 0 for the same.
    Returns: float32 ((2 * window - 1)**2, 2), row-major like the tables of `relative_position_index`.
    """
    reach = max((pretrained_window or window) - 1, 1)
    axis = torch.arange(-(window - 1), window, dtype=torch.float32) * 8 / reach
    axis = axis.sign() * (axis.abs() + 1).log2() / math.log2(8)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(-1, 2)


@dataclass(frozen=True, kw_only=True)
class ContinuousOptions(PyramidOptions):
    """`pretrained_window_sizes`: window of each stage in pre-training, 0 for the model's own."""

    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)

    def with_own_keys(self, section: CfgNode) -> Self:
        return replace(self, pretrained_window_sizes=tuple(section.PRETRAINED_WINDOW_SIZES))


class ContinuousBackbone(SwinBackbone):
    """A Swin whose position biases are computed from coordinates, normalised to the window of pre-training.

    Args: blocks: the family's, one per stage, with a keyword argument `pretrained_window`.
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

    def _attentions(self) -> list[list[ContinuousBias]]:
        return [[m for m in stage.modules() if isinstance(m, ContinuousBias)] for stage in self.stages()]
