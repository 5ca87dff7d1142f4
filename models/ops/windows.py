"""Windows of a map: partition, shift and mask, shared by the Swin families.

A map is a tensor (B, H, W, C). It is partitioned into windows of `window` x `window` tokens; every second block first
shifts the map by half a window, so that the windows of consecutive blocks overlap (paper, section 3.2). Nothing here
has parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class WindowGrid:
    """Partition of a map of `height` x `width` tokens into windows.

    Sides that are not a multiple of the window are padded with zeros at the bottom and on the right. A side that a
    single window covers is not shifted, as in the released classifiers: it has no neighbours to exchange with. The
    released detectors and segmenters shift it all the same: `of` with `always`.
    """

    height: int
    width: int
    window: int
    shift_h: int
    shift_w: int

    @staticmethod
    def of(height: int, width: int, window: int, shift: int, always: bool = False) -> "WindowGrid":
        """Returns the grid for a map of any size; 0 <= shift < window, in tokens.

        Args: always: shift sides that a single window covers, too.
        """
        shift_h, shift_w = (shift if always or side > window else 0 for side in (height, width))
        return WindowGrid(height, width, window, shift_h, shift_w)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width in tokens after padding to whole windows."""
        return tuple(-(-side // self.window) * self.window for side in (self.height, self.width))  # type: ignore

    @property
    def is_trivial(self) -> bool:
        """Whether the windows hold the tokens in row-major order: a single, unshifted window."""
        return self.padded == (self.window, self.window) and not (self.shift_h or self.shift_w)

    def split(self, x: Tensor) -> Tensor:
        """Partitions (B, height, width, C) into (B, windows, window * window, C), windows in row-major order."""
        batch, channels = x.shape[0], x.shape[-1]
        rows, cols = self.padded
        x = self.pad(x).reshape(batch, rows * cols, channels)
        if not self.is_trivial:
            x = permute_tokens(x, *_of_grid(_window_order, self, x.device))
        return x.view(batch, -1, self.window**2, channels)

    def merge(self, windows: Tensor) -> Tensor:
        """Inverts `split`: (B, windows, window * window, C) -> (B, height, width, C), without the padding."""
        batch, channels = windows.shape[0], windows.shape[-1]
        x = windows.reshape(batch, -1, channels)
        if not self.is_trivial:
            order, inverse = _of_grid(_window_order, self, windows.device)
            x = permute_tokens(x, inverse, order)
        return self.crop(x.view(batch, *self.padded, channels))

    def pad(self, x: Tensor) -> Tensor:
        """Pads (B, height, width, C) with zeros to (B, *padded, C)."""
        rows, cols = self.padded
        if (rows, cols) == (self.height, self.width):
            return x
        return F.pad(x, (0, 0, 0, cols - self.width, 0, rows - self.height))

    def crop(self, x: Tensor) -> Tensor:
        """Inverts `pad`."""
        return x[:, : self.height, : self.width]

    def mask(self, device: torch.device) -> Tensor | None:
        """Returns the additive mask that keeps tokens of opposite edges from attending to each other.

        Returns: (windows, window * window, window * window) of 0 and -100 (the released models' value, figure 4 of the
        paper), or None if nothing is shifted. Padding is not masked.
        """
        return _of_grid(_shift_mask, self, device) if self.shift_h or self.shift_w else None


def _of_grid(make: Callable[[WindowGrid, torch.device], T], grid: WindowGrid, device: torch.device) -> T:
    """Returns make(grid, device), cached; torch.compile traces `make` itself."""
    return make(grid, device) if torch.compiler.is_compiling() else _cached(make, grid, device)


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # tensors created in inference mode cannot be used in training
def _cached(make: Callable[[WindowGrid, torch.device], T], grid: WindowGrid, device: torch.device) -> T:
    return make(grid, device)


def _window_order(grid: WindowGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the row-major token of the padded map at each position of the windows, and the inverse."""
    rows, cols = grid.padded
    m = grid.window
    tokens = torch.arange(rows * cols).view(rows, cols).roll((-grid.shift_h, -grid.shift_w), (0, 1))
    order = tokens.view(rows // m, m, cols // m, m).transpose(1, 2).flatten()
    places = torch.arange(rows * cols).view(rows // m, cols // m, m, m).transpose(1, 2).reshape(rows, cols)
    inverse = places.roll((grid.shift_h, grid.shift_w), (0, 1)).flatten()
    return order.to(device), inverse.to(device)


def _shift_mask(grid: WindowGrid, device: torch.device) -> Tensor:
    rows, cols = grid.padded
    # tokens that wrapped around an edge belong to a different region than their new neighbours
    row_region = torch.arange(rows) >= rows - grid.shift_h
    col_region = torch.arange(cols) >= cols - grid.shift_w
    region = 2 * row_region.int()[:, None] + col_region.int()[None, :]
    unshifted = WindowGrid(rows, cols, grid.window, 0, 0)
    windows = unshifted.split(region[None, :, :, None])[0, :, :, 0]  # (windows, tokens)
    return (windows[:, None, :] != windows[:, :, None]).float().mul(-100.0).to(device)


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


def permute_tokens(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Permutes the tokens of x (B, L, C) in one pass over memory, forward and backward.

    Args: order int64 (L,): position i of the result is token order[i] of x; inverse: the inverse permutation.
    """
    if torch.compiler.is_compiling():  # or exported, for any batch size
        return x.index_select(1, order)
    return _PermuteTokens.apply(x, order, inverse)


class _PermuteTokens(torch.autograd.Function):
    """index_select with a gather as backward pass; the built-in one zero-fills and adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        batch, length, channels = x.shape
        rows = torch.arange(0, batch * length, length, device=x.device)[:, None] + order
        return x.reshape(-1, channels).index_select(0, rows.flatten()).view(batch, length, channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return permute_tokens(gradient, inverse, order), None, None
