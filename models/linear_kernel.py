"""Triton kernels for the backward pass of linear layers: gradients of biases, and of GELU with them in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLS = 32, 128  # of a tile
PROGRAMS = 4  # for every multiprocessor


@triton.jit
def _column_sums(x, sums, rows, columns, ROWS: tl.constexpr, COLS: tl.constexpr):
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for block in range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1)):
        row = block * ROWS + tl.arange(0, ROWS)
        tile = (row < rows)[:, None] & (col < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + col[None, :]
        total += tl.load(x + at, mask=tile, other=0.0).to(tl.float32)
    tl.store(sums + tl.program_id(1) * columns + col, tl.sum(total, 0), mask=col < columns)


@triton.jit
def _gelu_gradients(hidden, gradient, activated, sums, rows, columns, ROWS: tl.constexpr, COLS: tl.constexpr):
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for block in range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1)):
        row = block * ROWS + tl.arange(0, ROWS)
        tile = (row < rows)[:, None] & (col < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + col[None, :]
        h = tl.load(hidden + at, mask=tile, other=0.0).to(tl.float32)
        g = tl.load(gradient + at, mask=tile, other=0.0).to(tl.float32)
        below = 0.5 * (1 + tl.erf(h * 0.7071067811865476))  # of the normal distribution
        g *= below + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)
        total += g
        tl.store(activated + at, (h * below).to(activated.dtype.element_ty), mask=tile)
        tl.store(gradient + at, g.to(gradient.dtype.element_ty), mask=tile)
    tl.store(sums + tl.program_id(1) * columns + col, tl.sum(total, 0), mask=col < columns)


def column_sums(x: Tensor) -> Tensor:
    """Returns the sum over the rows of a contiguous x (rows, columns), added in float32, in the type of `x`."""
    sums, grid = _prepare(x)
    _column_sums[grid](x, sums, *x.shape, ROWS=ROWS, COLS=COLS)
    return sums.sum(0).to(x.dtype)


def gelu_gradients(hidden: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Turns `gradient`, with respect to GELU(hidden), into that with respect to `hidden`, in place.

    Args: contiguous (rows, columns) each. Returns: GELU(hidden), and the sum of the new gradient over the rows.
    """
    activated = torch.empty_like(hidden)
    sums, grid = _prepare(hidden)
    _gelu_gradients[grid](hidden, gradient, activated, sums, *hidden.shape, ROWS=ROWS, COLS=COLS)
    return activated, sums.sum(0).to(hidden.dtype)


def _prepare(x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Returns memory for the sums of each program, and the grid of programs."""
    rows, columns = x.shape
    units = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    blocks = triton.cdiv(columns, COLS)
    parts = max(1, min(triton.cdiv(rows, ROWS), PROGRAMS * units // blocks))
    return torch.empty(parts, columns, device=x.device), (blocks, parts)
