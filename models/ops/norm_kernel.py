"""LayerNorm and the cast to the dtype of matrix products as one Triton kernel, without gradients.

Autocast normalises in float32 and casts for the next product: two passes over the map instead of one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

ELEMENTS = 4096  # per program


# the batch size varies: specialising on it would recompile the kernel
@triton.jit(do_not_specialize=["rows"])
def _norm(x, weight, bias, out, rows, channels, eps, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    inside = col < channels
    tile = (row < rows)[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * channels + col[None, :]
    values = tl.load(x + at, mask=tile, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    centred = tl.where(tile, values - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
    scale = tl.load(weight + col, mask=inside, other=0.0)
    offset = tl.load(bias + col, mask=inside, other=0.0)
    normed = centred * inverse[:, None] * scale[None, :] + offset[None, :]
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=tile)


def layer_norm(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """Returns norm(x) as `dtype`, computed in float32. Args: x (..., C), float32 or half precision."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    channels = x.shape[-1]
    rows, columns = x.numel() // channels, triton.next_power_of_2(channels)
    tile = max(1, ELEMENTS // columns)
    with torch.cuda.device_of(x):
        _norm[(triton.cdiv(rows, tile),)](
            x, norm.weight, norm.bias, out, rows, channels, norm.eps, ROWS=tile, COLS=columns
        )
    return out
