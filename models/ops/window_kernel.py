"""Window attention as one Triton kernel on the row-major map, forward and backward.

The kernel reads query, key and value where the linear layer wrote them, shifted and grouped by address computation,
adds position bias and mask to the scores in registers, and writes each token back to its position: neither a rolled or
grouped copy of the map nor a matrix of scores is materialised. A program handles one head and a subset of the windows,
so the bias stays in registers, and its gradient is summed there without atomics.

With TRITON_INTERPRET=1, set before Triton is imported, it runs on the CPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MASKED = tl.constexpr(-100.0)  # as in models/ops/windows.py
# measured on an H100
PROGRAMS = 8  # per multiprocessor
WARPS = 4


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if PRECISION == "upcast":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _inverse_norms(x):
    """Returns 1 / norm of every row, 0 for zero rows such as the keys of padding."""
    norms = tl.sqrt(tl.sum(x * x, 1))
    return tl.where(norms > 1e-12, 1 / tl.maximum(norms, 1e-12), 0.0)


@triton.jit
def _normalized(x):
    x = x.to(tl.float32)
    inverses = _inverse_norms(x)
    return x * inverses[:, None], inverses


@triton.jit
def _bias_of_head(bias, head, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the offsets of a head's pairs, their mask, and the bias, minus infinity beyond the window."""
    i = tl.arange(0, BLOCK)
    inside = i < SIDE * SIDE
    pairs = inside[:, None] & inside[None, :]
    at = (head * SIDE * SIDE + i[:, None]) * SIDE * SIDE + i[None, :]
    own = tl.load(bias + at, mask=pairs, other=0.0)
    return at, pairs, tl.where(inside[None, :], own, float("-inf"))


@triton.jit
def _tokens(window, height, width, shift_h, shift_w, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the index of each token of a window in the maps of the batch, and the region of the map it is in."""
    i = tl.arange(0, BLOCK)
    cols = width // SIDE
    per_map = height // SIDE * cols
    row, col = window % per_map // cols * SIDE + i // SIDE, window % cols * SIDE + i % SIDE
    region = 2 * (row >= height - shift_h) + (col >= width - shift_w)
    place = (row + shift_h) % height * width + (col + shift_w) % width
    return (window // per_map).to(tl.int64) * height * width + place, region


@triton.jit
def _weights(scores, region, shifted):
    """Returns the softmax of the scores; tokens that wrapped around an edge are masked from their new neighbours."""
    if shifted:
        scores += tl.where(region[:, None] == region[None, :], 0.0, MASKED)
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


# fmt: off
@triton.jit(do_not_specialize=["windows"])  # their number varies with stochastic depth
def _forward(
    qkv, bias, out, scales, windows, height, width, shift_h, shift_w, scale, heads,
    WIDTH: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr,
    COSINE: tl.constexpr, COSINE_PRECISION: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    head, d = tl.program_id(0), tl.arange(0, WIDTH)
    inside = (tl.arange(0, BLOCK) < SIDE * SIDE)[:, None]
    _pair, _pairs, own_bias = _bias_of_head(bias, head, SIDE, BLOCK)
    if COSINE:
        scale = tl.load(scales + head)
    for window in range(tl.program_id(1), windows, tl.num_programs(1)):
        token, region = _tokens(window, height, width, shift_h, shift_w, SIDE, BLOCK)
        at = qkv + (token * 3 * heads + head)[:, None] * WIDTH + d[None, :]
        q = tl.load(at, mask=inside, other=0.0)
        k = tl.load(at + heads * WIDTH, mask=inside, other=0.0)
        v = tl.load(at + 2 * heads * WIDTH, mask=inside, other=0.0)
        if COSINE:
            unit_q, _q_inverses = _normalized(q)
            unit_k, _k_inverses = _normalized(k)
            products = _dot(unit_q, tl.trans(unit_k), COSINE_PRECISION)
        else:
            products = _dot(q, tl.trans(k), PRECISION)
        weights = _weights(products * scale + own_bias, region, shift_h + shift_w > 0)
        result = _dot(weights.to(v.dtype), v, PRECISION)
        place = out + (token * heads + head)[:, None] * WIDTH + d[None, :]
        tl.store(place, result.to(v.dtype), mask=inside)


# fmt: off
@triton.jit(do_not_specialize=["windows"])  # their number varies with stochastic depth
def _backward(
    qkv, bias, gradient, d_qkv, d_bias, d_scales,
    scales, windows, height, width, shift_h, shift_w, scale, heads,
    WIDTH: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr,
    COSINE: tl.constexpr, COSINE_PRECISION: tl.constexpr, PRECISION: tl.constexpr,
):
    # fmt: on
    head, d = tl.program_id(0), tl.arange(0, WIDTH)
    inside = (tl.arange(0, BLOCK) < SIDE * SIDE)[:, None]
    pair, pairs, own_bias = _bias_of_head(bias, head, SIDE, BLOCK)
    sum_bias, sum_scale = tl.zeros((BLOCK, BLOCK), tl.float32), 0.0
    if COSINE:
        scale = tl.load(scales + head)
    for window in range(tl.program_id(1), windows, tl.num_programs(1)):
        token, region = _tokens(window, height, width, shift_h, shift_w, SIDE, BLOCK)
        at = (token * 3 * heads + head)[:, None] * WIDTH + d[None, :]
        q = tl.load(qkv + at, mask=inside, other=0.0)
        k = tl.load(qkv + at + heads * WIDTH, mask=inside, other=0.0)
        v = tl.load(qkv + at + 2 * heads * WIDTH, mask=inside, other=0.0)
        g = tl.load(gradient + (token * heads + head)[:, None] * WIDTH + d[None, :], mask=inside, other=0.0)
        if COSINE:
            unit_q, q_inverses = _normalized(q)
            unit_k, k_inverses = _normalized(k)
            products = _dot(unit_q, tl.trans(unit_k), COSINE_PRECISION)
        else:
            products = _dot(q, tl.trans(k), PRECISION)
        weights = _weights(products * scale + own_bias, region, shift_h + shift_w > 0)
        d_weights = _dot(g, tl.trans(v), PRECISION)
        d_scores = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None])
        sum_bias += d_scores
        d_v = _dot(tl.trans(weights.to(v.dtype)), g, PRECISION)
        if COSINE:
            sum_scale += tl.sum(d_scores * products)
            # with q and k unnormalised: their norms are factors of the scores
            of_q, of_k = d_scores * (scale * k_inverses)[None, :], d_scores * (scale * q_inverses)[:, None]
            d_q = _dot(of_q.to(v.dtype), k, PRECISION)
            d_k = _dot(tl.trans(of_k.to(v.dtype)), q, PRECISION)
            d_q = (d_q - unit_q * tl.sum(d_q * unit_q, 1)[:, None]) * q_inverses[:, None]
            d_k = (d_k - unit_k * tl.sum(d_k * unit_k, 1)[:, None]) * k_inverses[:, None]
        else:
            narrow = (d_scores * scale).to(v.dtype)
            d_q = _dot(narrow, k, PRECISION)
            d_k = _dot(tl.trans(narrow), q, PRECISION)
        tl.store(d_qkv + at, d_q.to(v.dtype), mask=inside)
        tl.store(d_qkv + at + heads * WIDTH, d_k.to(v.dtype), mask=inside)
        tl.store(d_qkv + at + 2 * heads * WIDTH, d_v.to(v.dtype), mask=inside)
    tl.store(d_bias + tl.program_id(1) * heads * SIDE * SIDE * SIDE * SIDE + pair, sum_bias, mask=pairs)
    if COSINE:
        tl.store(d_scales + tl.program_id(1) * heads + head, sum_scale)


class FusedWindowAttention(torch.autograd.Function):
    """Differentiable `run_forward`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        qkv, bias, scales, *ctx.rest = inputs
        ctx.save_for_backward(qkv, bias, scales)
        return run_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *run_backward(gradient, *ctx.saved_tensors, *ctx.rest), None, None, None, None


def run_forward(
    qkv: Tensor, bias: Tensor, scales: Tensor | None, scale: float, window: int, shift_h: int, shift_w: int
) -> Tensor:
    """Attends within the (shifted) windows of a map: softmax(scale * query @ key^T + bias + mask) @ value.

    Args: qkv (B, H, W, 3 * heads * d), H and W multiples of `window`; bias float32 (heads, window**2, window**2);
    scales: float32 (heads,) for cosine attention, of normalised queries and keys, in place of `scale`; shift_h,
    shift_w: in tokens, as in `WindowGrid`.
    Returns: (B, H, W, heads * d).
    """
    qkv, bias = qkv.contiguous(), bias.contiguous()
    out = qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)
    grid, arguments, constants = _launch(qkv, bias, scales, (scale, window, shift_h, shift_w))
    with torch.cuda.device_of(qkv):
        _forward[grid](qkv, bias, out, *arguments, **constants, num_warps=WARPS)
    return out


def run_backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, scales: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the gradients of qkv, bias and scales. Args: gradient: the output's; others: as in `run_forward`."""
    qkv, bias = qkv.contiguous(), bias.contiguous()
    grid, arguments, constants = _launch(qkv, bias, scales, rest)
    d_qkv = torch.empty_like(qkv)
    d_bias, d_scales = bias.new_empty(grid[1], *bias.shape), bias.new_empty(grid[1], len(bias))
    gradients = gradient.contiguous(), d_qkv, d_bias, d_scales
    with torch.cuda.device_of(qkv):
        _backward[grid](qkv, bias, *gradients, *arguments, **constants, num_warps=WARPS)
    return d_qkv, d_bias.sum(0), None if scales is None else d_scales.sum(0)


def _launch(
    qkv: Tensor, bias: Tensor, scales: Tensor | None, rest: tuple[Any, ...]
) -> tuple[tuple[int, int], tuple[Any, ...], dict[str, Any]]:
    """Returns the launch grid, and the arguments and constants of both kernels."""
    scale, window, shift_h, shift_w = rest
    batch, height, width, channels = qkv.shape
    heads, windows = len(bias), batch * (height // window) * (width // window)
    units = torch.cuda.get_device_properties(qkv.device).multi_processor_count if qkv.is_cuda else 1
    grid = heads, max(1, min(windows, PROGRAMS * units // heads))
    factors = bias if scales is None else scales  # not read without cosines
    constants = {
        "WIDTH": channels // (3 * heads),
        "SIDE": window,
        "BLOCK": max(16, triton.next_power_of_2(window**2)),
        "COSINE": scales is not None,
        "COSINE_PRECISION": "tf32x3" if qkv.is_cuda else "ieee",
        "PRECISION": "ieee" if qkv.is_cuda else "upcast",  # the interpreter cannot multiply bfloat16
    }
    return grid, (factors, windows, height, width, shift_h, shift_w, scale, heads), constants
