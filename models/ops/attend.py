"""Attention with an additive bias, in the fastest implementation for the device.

MODEL.ATTENTION sets the form; "auto" is the fastest one measured (docs/benchmarks.md):

- "kernel", on a GPU in half precision: models/ops/window_kernel.py, for windows of up to 64 tokens;
- "fused", without gradients unless models/ops/measure.py found the next one faster: torch's
  scaled_dot_product_attention;
- "explicit", with gradients: matrix products and a softmax in place, whose backward pass also yields the gradient of
  the bias, which fused kernels do not on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.forms import form_of
from models.ops.kernels import is_exporting, may_use_kernels, runs_kernels
from models.ops.linear import no_autocast
from models.ops.windows import WindowGrid
from utils.errors import ConfigError

FORMS = ("auto", "explicit", "fused", "kernel")
# what models/ops/window_kernel.py supports
MAX_TOKENS, WIDTHS = 64, (16, 32)  # wider heads do not fit into the shared memory of some GPUs

_recorded: ContextVar[list[Tensor] | None] = ContextVar("recorded", default=None)


def takes_kernel(form: str, x: Tensor, tokens: int, width: int, dropout: float) -> bool:
    """Returns whether to use `attend_on_map` in place of `attend`.

    Args: form: one of `FORMS`; x: the map, in the dtype of the products; tokens: number per window; width: channels per
    head; dropout: rate for the attention weights.
    Raises: ConfigError if the form is "kernel" and it cannot be used.
    """
    if form not in ("auto", "kernel") or _recording() is not None or x.device.type == "meta":
        return False
    if is_exporting() or (form == "auto" and not may_use_kernels(x, x.dtype)):
        return False
    fits = tokens <= MAX_TOKENS and width in WIDTHS and not dropout
    if form == "kernel" and not (fits and runs_kernels(x)):
        raise ConfigError(
            "MODEL.ATTENTION",
            f"the kernel requires at most {MAX_TOKENS} tokens per window, {' or '.join(map(str, WIDTHS))} channels per"
            " head, no dropout, and Triton on an NVIDIA GPU of compute capability 8.0 or higher",
            "set it to auto",
        )
    return fits


def attend_on_map(qkv: Tensor, bias: Tensor, grid: WindowGrid, scale: float | Tensor) -> Tensor:
    """Computes `attend` for the windows of a map without copying it, and adds the mask of shifted windows.

    Args: qkv (B, *grid.padded, 3 * heads * d); bias float32 (heads, N, N); scale: as in `attend`.
    Returns: (B, *grid.padded, heads * d).
    """
    scales, scale = (scale.float(), 1.0) if isinstance(scale, Tensor) else (None, scale)
    arguments = qkv, bias.float(), scales, scale, grid.window, grid.shift_h, grid.shift_w
    # imported here: Triton is optional
    if torch.compiler.is_compiling():
        from models.ops.window_operator import window_attention

        return window_attention(*arguments)
    from models.ops.window_kernel import FusedWindowAttention

    return FusedWindowAttention.apply(*arguments)


def attend(qkv: Tensor, bias: Tensor, scale: float | Tensor, dropout: float = 0.0, form: str = "auto") -> Tensor:
    """Attends within each window: softmax(scale * query @ key^T + bias) @ value, for every head.

    Args: qkv (B, windows, N, 3 * heads * d); bias float32 (windows or 1, heads, N, N); scale: a tensor, float32
    (heads,), multiplies the cosines between query and key in place of their products (arXiv 2111.09883, section 3.3);
    dropout: rate for the weights; form: one of `FORMS`. With dropout, and within torch.compile unless the form is
    "fused", plain operations are used.
    Returns: (B, windows, N, heads * d), in the dtype of `qkv`.
    """
    qkv = qkv.unflatten(-1, (3, bias.shape[1], -1))
    if isinstance(scale, Tensor):
        # float32: half precision loses the squares of the norm, and the scale multiplies the cosines by up to 100
        with no_autocast(qkv):
            query, key = F.normalize(qkv[:, :, :, :2].float(), dim=-1).unbind(3)
            query, value, scale = query * scale[:, None], qkv[:, :, :, 2], 1.0
    else:
        query, key, value = qkv.unbind(3)
    recorded = _recording()
    if recorded is not None:
        recorded.append(_weights(query, key, bias, scale))
    if dropout or (torch.compiler.is_compiling() and form != "fused"):
        out = _plain(query, key, value, bias, scale, dropout)
    elif form == "explicit" or (form != "fused" and (torch.is_grad_enabled() or _is_faster_explicit(value))):
        out = _Attention.apply(query, key, value, bias, scale)
    else:
        out = _fused(query, key, value, bias, scale)
    return out.flatten(3)


@contextmanager
def record_weights(into: list[Tensor]) -> Iterator[None]:
    """Appends the weights of every attention in the block to a list: (B, windows, heads, N, N).

    Models compiled by torch.compile append nothing.
    """
    token = _recorded.set(into)
    try:
        yield
    finally:
        _recorded.reset(token)


def _recording() -> list[Tensor] | None:
    # torch 2.11 cannot compile a function that reads a context variable
    return None if torch.compiler.is_compiling() else _recorded.get()


def _weights(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> Tensor:
    query, key = query.transpose(2, 3), key.transpose(2, 3)
    with no_autocast(query):  # cosines are float32
        return (scale * (query @ key.transpose(-2, -1)) + bias).softmax(dim=-1)


def _plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    weights = F.dropout(_weights(query, key, bias, scale), dropout).to(value.dtype)
    return (weights @ value.transpose(2, 3)).transpose(2, 3)


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    batch, count = value.shape[:2]
    q, k, v = (t.to(query.dtype).flatten(0, 1).transpose(1, 2) for t in (query, key, value))  # (B*windows, heads, N, d)
    mask = bias.to(q.dtype)
    if len(mask) > 1:
        mask = mask.expand(batch, *mask.shape).flatten(0, 1)
    with no_autocast(q):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).to(value.dtype).unflatten(0, (batch, count))


class _Attention(torch.autograd.Function):
    """Matrix products and a softmax in place; keeps query, key, value and weights for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        batch, count, tokens, heads, _ = value.shape
        q, k, v = (_by_head(t) for t in (query, key, value))
        with no_autocast(value):
            scores = q.new_empty(batch, count, heads, tokens, tokens).copy_(bias).flatten(0, 2)
            torch.baddbmm(scores, q, k.transpose(1, 2), alpha=scale, out=scores)
            weights = torch.softmax(scores, dim=-1, out=scores).to(v.dtype)
            out = torch.bmm(weights, v)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale, ctx.shape, ctx.windows = scale, value.shape, len(bias)
        return _by_token(out, value.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        batch, count, tokens, heads, _ = ctx.shape
        g = _by_head(gradient)
        with no_autocast(g):
            d_value = torch.bmm(weights.transpose(1, 2), g)
            d_scores = torch.bmm(g, v.transpose(1, 2))
            torch.ops.aten._softmax_backward_data.out(d_scores, weights, -1, weights.dtype, grad_input=d_scores)
            d_bias = None
            if ctx.needs_input_grad[3]:
                groups = (batch, count) if ctx.windows > 1 else (batch * count, 1)
                d_bias = d_scores.view(*groups, heads, tokens, tokens).sum(0, dtype=torch.float32)
            d_scores = d_scores.to(q.dtype)
            d_query = torch.baddbmm(q.new_empty(()), d_scores, k, beta=0, alpha=ctx.scale)
            d_key = torch.baddbmm(q.new_empty(()), d_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale)
        return *(_by_token(d, ctx.shape) for d in (d_query, d_key, d_value)), d_bias, None


def _is_faster_explicit(value: Tensor) -> bool:
    batch, count, tokens, heads, width = value.shape
    return form_of("attention", (tokens, heads, width), value, batch * count) == "explicit"


def _by_head(x: Tensor) -> Tensor:
    """Reshapes (B, windows, N, heads, d) to (B * windows * heads, N, d), contiguous."""
    return x.transpose(2, 3).contiguous().flatten(0, 2)


def _by_token(x: Tensor, shape: torch.Size) -> Tensor:
    """Views (B * windows * heads, N, d) as `shape`, (B, windows, N, heads, d)."""
    batch, count, tokens, heads, width = shape
    return x.view(batch, count, heads, tokens, width).transpose(2, 3)
