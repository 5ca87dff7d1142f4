"""Window self-attention with additive position biases.

V1 learns a table of biases (arXiv 2103.14030, section 3.2); V2 and Swin-MoE compute them from log-spaced coordinates,
which fit any window (arXiv 2111.09883, section 3.3).
"""

import math

import torch
from torch import Tensor, nn

from models.ops.attend import attend, attend_on_map, takes_kernel
from models.ops.linear import Linear
from models.ops.windows import WindowGrid, relative_position_index
from utils.eval_cache import derived


class WindowAttention(nn.Module):
    """Multi-head self-attention within (shifted) windows: softmax(scale * query @ key^T + bias) @ value.

    A mixin, `TablePositionBias` or `ContinuousPositionBias`, precedes it and supplies the bias of each pair of tokens.

    Args: window, shift in tokens; qk_scale: None for 1 / sqrt(channels per head); attn_drop: dropout rate for the
    attention weights; form: one of `models.ops.attend.FORMS`; always_shift: shift a side covered by one window, too.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shift: int = 0,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        form: str = "auto",
        always_shift: bool = False,
    ):
        super().__init__()
        self.heads, self.window, self.shift, self.always_shift = heads, window, shift, always_shift
        self.qk_scale = (dim // heads) ** -0.5 if qk_scale is None else qk_scale
        self.attn_drop, self.form = attn_drop, form
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.add_position_bias()
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_position_bias()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        grid = WindowGrid.of(x.shape[1], x.shape[2], self.window, self.shift, self.always_shift)
        dropout = self.attn_drop if self.training else 0.0
        if takes_kernel(self.form, x, self.window**2, x.shape[-1] // self.heads, dropout):
            x = attend_on_map(self.project(grid.pad(x)), self.bias()[0], grid, self.scale)
            return grid.crop(self.proj_drop(self.proj(x)))
        qkv = self.project(grid.split(x))  # (B, H, W, C) -> (B, windows, N, 3 * C)
        x = attend(qkv, self.bias(grid.mask(x.device)), self.scale, dropout, self.form)
        return grid.merge(self.proj_drop(self.proj(x)))

    def project(self, x: Tensor) -> Tensor:
        """Returns query, key and value of every token: (..., C) -> (..., 3 * C)."""
        return self.qkv(x)

    @property
    def scale(self) -> float | Tensor:
        """Factor of the scores, as in `attend`."""
        return self.qk_scale

    def bias(self, mask: Tensor | None = None) -> Tensor:
        """Returns the bias of the scores, (windows or 1, heads, N, N). Args: mask (windows, N, N), added to it."""
        sources = [*self.bias_sources(), *([] if mask is None else [mask])]
        return derived(lambda: self._masked_bias(mask), *sources)

    def _masked_bias(self, mask: Tensor | None) -> Tensor:
        bias = self.position_bias()[None]
        return bias if mask is None else bias + mask[:, None]

    def add_position_bias(self) -> None:
        """Registers the bias parameters; called before the layers are built."""
        raise NotImplementedError

    def reset_position_bias(self) -> None:
        """Initialises the bias parameters that are not part of a layer."""

    def position_bias(self) -> Tensor:
        """Returns (heads, N, N) for the N tokens of a window."""
        raise NotImplementedError

    def bias_sources(self) -> list[Tensor]:
        """Returns the tensors that the bias is computed from."""
        raise NotImplementedError


class TablePositionBias(nn.Module):
    """A learned bias per relative position (arXiv 2103.14030, section 3.2); a mixin for `WindowAttention`."""

    heads: int
    window: int
    relative_position_index: Tensor

    def add_position_bias(self) -> None:
        offsets = (2 * self.window - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, self.heads))

    def reset_position_bias(self) -> None:
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        return by_pair(self.relative_position_bias_table, self.relative_position_index)

    def bias_sources(self) -> list[Tensor]:
        return [self.relative_position_bias_table]


class ContinuousPositionBias(nn.Module):
    """A bias computed by a small network from log-spaced relative coordinates (arXiv 2111.09883, section 3.3); a mixin
    for `WindowAttention`."""

    heads: int
    window: int
    relative_position_index: Tensor
    relative_coords_table: Tensor

    def add_position_bias(self) -> None:
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, self.heads, bias=False))
        self.register_buffer("relative_coords_table", torch.zeros((2 * self.window - 1) ** 2, 2), persistent=False)
        self.set_pretrained_window(0)

    def set_pretrained_window(self, window: int) -> None:
        """Normalises the coordinates to the window the weights were trained with; 0: the window of the model."""
        self.pretrained_window = window or self.window
        self.relative_coords_table.copy_(log_coordinates(self.window, self.pretrained_window))

    def position_bias(self) -> Tensor:
        return by_pair(self.cpb_mlp(self.relative_coords_table), self.relative_position_index).float()

    def bias_sources(self) -> list[Tensor]:
        return [*self.cpb_mlp.parameters(), self.relative_coords_table]


def by_pair(table: Tensor, index: Tensor) -> Tensor:
    """Looks up the offset of every pair of tokens: (offsets, heads), (N, N) -> (heads, N, N)."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


def log_coordinates(window: int, pretrained_window: int) -> Tensor:
    """Returns log-spaced relative coordinates (section 3.3, equation 4), normalised to the pre-training window.

    Args: window: the model's; pretrained_window: the weights', 0 for the same.
    Returns: float32 ((2 * window - 1)**2, 2), row-major like the tables of `relative_position_index`.
    """
    reach = max((pretrained_window or window) - 1, 1)
    axis = torch.arange(-(window - 1), window, dtype=torch.float32) * 8 / reach
    axis = axis.sign() * (axis.abs() + 1).log2() / math.log2(8)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(-1, 2)
