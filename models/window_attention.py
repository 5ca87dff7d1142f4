"""Attention within windows: the tensor code shared by the Swin families.

A map is a tensor (B, H, W, C). It is partitioned into windows of `window` x `window` tokens; every second block first
shifts the map by half a window, so that the windows of consecutive blocks overlap (paper, section 3.2). Nothing here
has parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class WindowGrid:
    """How a map of `height` x `width` tokens is partitioned into windows.

    Sides that are not a multiple of the window are padded with zeros at the bottom and on the right. A side that a
    single window covers is not shifted, as in the released models: it has no neighbours to exchange with.
    """

    height: int
    width: int
    window: int
    shift_h: int
    shift_w: int

    @staticmethod
    def of(height: int, width: int, window: int, shift: int) -> "WindowGrid":
        """Returns the grid for a map of any size; 0 <= shift < window, in tokens."""
        return WindowGrid(height, width, window, shift if height > window else 0, shift if width > window else 0)

    @property
    def padded(self) -> tuple[int, int]:
        """The sides in tokens after padding to whole windows."""
        return tuple(-(-side // self.window) * self.window for side in (self.height, self.width))  # type: ignore

    def split(self, x: Tensor) -> Tensor:
        """Partitions (B, height, width, C) into (B, windows, window * window, C), windows in row-major order."""
        batch, height, width, channels = x.shape
        rows, cols = self.padded
        if (rows, cols) != (height, width):
            x = F.pad(x, (0, 0, 0, cols - width, 0, rows - height))
        if self.shift_h or self.shift_w:
            x = x.roll((-self.shift_h, -self.shift_w), (1, 2))
        m = self.window
        x = x.view(batch, rows // m, m, cols // m, m, channels).transpose(2, 3)
        return x.reshape(batch, (rows // m) * (cols // m), m * m, channels)

    def merge(self, windows: Tensor) -> Tensor:
        """Inverts `split`: (B, windows, window * window, C) -> (B, height, width, C), without the padding."""
        batch, channels = windows.shape[0], windows.shape[-1]
        rows, cols = self.padded
        m = self.window
        x = windows.view(batch, rows // m, cols // m, m, m, channels).transpose(2, 3)
        x = x.reshape(batch, rows, cols, channels)
        if self.shift_h or self.shift_w:
            x = x.roll((self.shift_h, self.shift_w), (1, 2))
        return x[:, : self.height, : self.width]

    def mask(self, device: torch.device) -> Tensor | None:
        """Returns what is added to the scores so that tokens from opposite edges do not attend to each other.

        Returns: (windows, window * window, window * window) of 0 and -100 (the released models' value, figure 4 of the
        paper), or None if nothing is shifted. Padding is not masked.
        """
        return _shift_mask(self, device) if self.shift_h or self.shift_w else None


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a mask created in inference mode cannot be used in training later
def _shift_mask(grid: WindowGrid, device: torch.device) -> Tensor:
    rows, cols = grid.padded
    # tokens that wrapped around an edge belong to another region than their new neighbours
    row_region = torch.arange(rows) >= rows - grid.shift_h
    col_region = torch.arange(cols) >= cols - grid.shift_w
    region = 2 * row_region.int()[:, None] + col_region.int()[None, :]
    unshifted = WindowGrid(rows, cols, grid.window, 0, 0)
    windows = unshifted.split(region[None, :, :, None])[0, :, :, 0]  # (windows, tokens)
    return (windows[:, None, :] != windows[:, :, None]).float().mul(-100.0).to(device)


def in_windows(x: Tensor, window: int, shift: int, attention: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """Applies `attention(windows, mask)` to a map (B, H, W, C) in (shifted) windows and merges the result."""
    grid = WindowGrid.of(x.shape[1], x.shape[2], window, shift)
    return grid.merge(attention(grid.split(x), grid.mask(x.device)))


def relative_position_index(window: int) -> Tensor:
    """Returns the row of the bias table for every pair of tokens in a window (paper, section 3.2, equation 4).

    Returns: int64 (window**2, window**2); entry [i, j] numbers the offsets (row_i - row_j, col_i - col_j) row-major
    from (-(window - 1), -(window - 1)), the layout of the released tables.
    """
    axis = torch.arange(window)
    row, col = (c.flatten() for c in torch.meshgrid(axis, axis, indexing="ij"))
    rows = row[:, None] - row[None, :] + window - 1
    cols = col[:, None] - col[None, :] + window - 1
    return rows * (2 * window - 1) + cols


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits (B, windows, N, 3 * C) into query, key, value, each (B, windows, heads, N, C / heads)."""
    batch, count, tokens, width = qkv.shape
    parts = qkv.view(batch, count, tokens, 3, heads, width // (3 * heads)).permute(3, 0, 1, 4, 2, 5)
    return parts[0], parts[1], parts[2]


def attend(scores: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Returns the weighted sum of the values of each window.

    Args: scores (B, windows, heads, N, N); value (B, windows, heads, N, d); bias (heads, N, N); mask (windows, N, N).
    Returns: (B, windows, N, heads * d).
    """
    # bias and mask are float32, so the softmax runs in float32 under mixed precision too
    scores = scores + bias
    if mask is not None:
        scores = scores + mask[:, None]
    weights = F.dropout(scores.softmax(dim=-1), dropout, training=dropout > 0).to(value.dtype)
    return (weights @ value).transpose(2, 3).flatten(3)
