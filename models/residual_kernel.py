"""The two ends of a pre-norm residual branch as Triton kernels: choose samples and normalise; scale and add.

Between two matrix products a branch then reads and writes the map once. Stochastic depth costs no copy of the chosen
samples, and the gradient of the main branch, of the chosen samples and of the norm are one pass.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from models.stochastic_depth import Samples

# the number of chosen samples varies: it must not lead to kernels of its own
VARIES = {"do_not_specialize": ["rows"], "do_not_specialize_on_alignment": ["numbers", "places", "factors"]}
ELEMENTS = 4096  # of the tile that a program holds
PROGRAMS = 4  # for every multiprocessor, where each sums gradients of parameters


@triton.jit(**VARIES)
def _norm_forward(
    x,
    numbers,
    weight,
    bias,
    out,
    means,
    inverses,
    rows,
    per_sample,
    channels,
    eps,
    CHOSEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    valid, used = row < rows, col < channels
    tile = valid[:, None] & used[None, :]
    source = row
    if CHOSEN:
        source = tl.load(numbers + row // per_sample, mask=valid, other=0).to(tl.int32) * per_sample + row % per_sample
    values = tl.load(x + source.to(tl.int64)[:, None] * channels + col[None, :], mask=tile, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    centred = tl.where(tile, values - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
    scale = tl.load(weight + col, mask=used, other=0.0)
    offset = tl.load(bias + col, mask=used, other=0.0)
    normed = centred * inverse[:, None] * scale[None, :] + offset[None, :]
    place = out + row.to(tl.int64)[:, None] * channels + col[None, :]
    tl.store(place, normed.to(out.dtype.element_ty), mask=tile)
    tl.store(means + row, mean, mask=valid)
    tl.store(inverses + row, inverse, mask=valid)


@triton.jit(**VARIES)
def _norm_backward(
    of_normed,
    of_all,
    x,
    places,
    factors,
    weight,
    means,
    inverses,
    d_x,
    d_weight,
    d_bias,
    rows,
    per_sample,
    channels,
    CHOSEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    col = tl.arange(0, COLS)
    used = col < channels
    scale = tl.load(weight + col, mask=used, other=0.0)
    sum_weight, sum_bias = tl.zeros((COLS,), tl.float32), tl.zeros((COLS,), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        valid = row < rows
        kept, at = valid, row
        if CHOSEN:
            sample = row // per_sample
            kept = valid & (tl.load(factors + sample, mask=valid, other=0.0) != 0)
            at = tl.load(places + sample, mask=valid, other=0).to(tl.int32) * per_sample + row % per_sample
        tile, own = valid[:, None] & used[None, :], kept[:, None] & used[None, :]
        offset = row.to(tl.int64)[:, None] * channels + col[None, :]
        gradient = tl.load(of_normed + at.to(tl.int64)[:, None] * channels + col[None, :], mask=own, other=0.0).to(
            tl.float32
        )
        values = tl.load(x + offset, mask=own, other=0.0).to(tl.float32)
        mean, inverse = tl.load(means + at, mask=kept, other=0.0), tl.load(inverses + at, mask=kept, other=0.0)
        normed = tl.where(own, (values - mean[:, None]) * inverse[:, None], 0.0)
        sum_weight += tl.sum(gradient * normed, 0)
        sum_bias += tl.sum(gradient, 0)
        gradient *= scale[None, :]
        along = tl.sum(gradient * normed, 1) / channels
        gradient -= tl.sum(gradient, 1)[:, None] / channels + normed * along[:, None]
        total = tl.load(of_all + offset, mask=tile, other=0.0).to(tl.float32) + gradient * inverse[:, None]
        tl.store(d_x + offset, total.to(d_x.dtype.element_ty), mask=tile)
    own_sum = tl.program_id(0) * channels + col
    tl.store(d_weight + own_sum, sum_weight, mask=used)
    tl.store(d_bias + own_sum, sum_bias, mask=used)


@triton.jit(**VARIES)
def _add_forward(x, branch, places, factors, out, rows, per_sample, channels, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    valid, used = row < rows, col < channels
    tile = valid[:, None] & used[None, :]
    sample = row // per_sample
    factor = tl.load(factors + sample, mask=valid, other=0.0)
    at = tl.load(places + sample, mask=valid, other=0).to(tl.int32) * per_sample + row % per_sample
    offset = row.to(tl.int64)[:, None] * channels + col[None, :]
    values = tl.load(x + offset, mask=tile, other=0.0).to(tl.float32)
    own = tile & (factor != 0)[:, None]
    added = tl.load(branch + at.to(tl.int64)[:, None] * channels + col[None, :], mask=own, other=0.0).to(tl.float32)
    tl.store(out + offset, (values + factor[:, None] * added).to(out.dtype.element_ty), mask=tile)


@triton.jit(**VARIES)
def _add_backward(
    gradient, numbers, factors, d_branch, rows, per_sample, channels, ROWS: tl.constexpr, COLS: tl.constexpr
):
    row, col = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    valid, used = row < rows, col < channels
    tile = valid[:, None] & used[None, :]
    sample = tl.load(numbers + row // per_sample, mask=valid, other=0).to(tl.int32)
    factor = tl.load(factors + sample, mask=valid, other=0.0)
    source = (sample * per_sample + row % per_sample).to(tl.int64)
    values = tl.load(gradient + source[:, None] * channels + col[None, :], mask=tile, other=0.0).to(tl.float32)
    place = d_branch + row.to(tl.int64)[:, None] * channels + col[None, :]
    tl.store(place, (values * factor[:, None]).to(d_branch.dtype.element_ty), mask=tile)


def norm_of_chosen(x: Tensor, norm: nn.LayerNorm, kept: Samples | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Normalises the samples that keep a branch.

    Args: x (B, ..., C), float32 or half precision; kept: which, None for all; dtype: of the result.
    Returns: (b, ..., C), and x, to which the branch is to be added: its gradient is added in the same pass.
    """
    return _NormOfChosen.apply(x, norm.weight, norm.bias, norm.eps, kept, dtype)


def add_scaled(x: Tensor, branch: Tensor, kept: Samples) -> Tensor:
    """Returns x (B, ..., C) plus the factor of each sample times its branch, of (b, ..., C), in the type of `x`."""
    return _AddScaled.apply(x, branch, kept)


def _tiles(x: Tensor) -> tuple[int, int, dict[str, int]]:
    """Returns rows, rows per sample, and the constants of the kernels."""
    channels = x.shape[-1]
    columns = triton.next_power_of_2(channels)
    rows = x.numel() // channels
    return rows, math.prod(x.shape[1:-1]), {"ROWS": max(1, ELEMENTS // columns), "COLS": columns}


class _NormOfChosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, kept: Samples | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        count = len(x) if kept is None else len(kept.numbers)
        out = torch.empty(count, *x.shape[1:], dtype=dtype, device=x.device)
        rows, per_sample, sizes = _tiles(out)
        means, inverses = (torch.empty(rows, device=x.device) for _ in range(2))
        numbers = x if kept is None else kept.numbers
        with torch.cuda.device_of(x):
            _norm_forward[(triton.cdiv(rows, sizes["ROWS"]),)](
                *(x, numbers, weight, bias, out, means, inverses, rows, per_sample, x.shape[-1], eps),
                CHOSEN=kept is not None,
                **sizes,
            )
        ctx.save_for_backward(x, weight, means, inverses)
        ctx.kept = kept
        return out, x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_normed: Tensor, of_all: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, means, inverses = ctx.saved_tensors
        of_normed, of_all = of_normed.contiguous(), of_all.contiguous()
        rows, per_sample, sizes = _tiles(x)
        units = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
        programs = min(triton.cdiv(rows, sizes["ROWS"]), PROGRAMS * units)
        d_x = torch.empty_like(x)
        sums = torch.empty(2, programs, x.shape[-1], device=x.device)
        places, factors = (x, x) if ctx.kept is None else (ctx.kept.places, ctx.kept.factors)
        with torch.cuda.device_of(x):
            _norm_backward[(programs,)](
                *(of_normed, of_all, x, places, factors, weight, means, inverses, d_x, sums[0], sums[1]),
                *(rows, per_sample, x.shape[-1]),
                CHOSEN=ctx.kept is not None,
                **sizes,
            )
        d_weight, d_bias = sums.sum(1)
        return d_x, d_weight.to(weight.dtype), d_bias.to(weight.dtype), None, None, None


class _AddScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, kept: Samples) -> Tensor:
        ctx.kept, ctx.shape, ctx.dtype = kept, branch.shape, branch.dtype
        x, branch = x.contiguous(), branch.contiguous()
        out = torch.empty_like(x)
        rows, per_sample, sizes = _tiles(x)
        with torch.cuda.device_of(x):
            _add_forward[(triton.cdiv(rows, sizes["ROWS"]),)](
                x, branch, kept.places, kept.factors, out, rows, per_sample, x.shape[-1], **sizes
            )
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d_branch = torch.empty(ctx.shape, dtype=ctx.dtype, device=gradient.device)
        rows, per_sample, sizes = _tiles(d_branch)
        numbers, factors = ctx.kept.numbers, ctx.kept.factors
        with torch.cuda.device_of(gradient):
            _add_backward[(triton.cdiv(rows, sizes["ROWS"]),)](
                gradient.contiguous(), numbers, factors, d_branch, rows, per_sample, ctx.shape[-1], **sizes
            )
        return gradient, d_branch, None
