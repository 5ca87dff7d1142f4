"""Window attention kernel as a custom operator for torch.compile; calls cost more than direct launches."""

from typing import Any

import torch
from torch import Tensor

from models.ops.window_kernel import run_backward, run_forward


def _differentiable(operator: Any) -> Any:
    operator.register_autograd(_gradients, setup_context=_remember)
    return operator


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, bias, scales, *ctx.rest = inputs
    ctx.save_for_backward(qkv, bias, scales)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    d_qkv, d_bias, d_scales = _backward(gradient, *ctx.saved_tensors, *ctx.rest)
    return d_qkv, d_bias, d_scales if ctx.needs_input_grad[2] else None, None, None, None, None


@_differentiable
@torch.library.custom_op("swin_trainer::window_attention", mutates_args=())
def window_attention(
    qkv: Tensor, bias: Tensor, scales: Tensor | None, scale: float, window: int, shift_h: int, shift_w: int
) -> Tensor:
    """See `models.ops.window_kernel.run_forward`."""
    return run_forward(qkv, bias, scales, scale, window, shift_h, shift_w)


@window_attention.register_fake
def _(
    qkv: Tensor, bias: Tensor, scales: Tensor | None, scale: float, window: int, shift_h: int, shift_w: int
) -> Tensor:
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


# fmt: off
@torch.library.custom_op("swin_trainer::window_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, scales: Tensor | None,
    scale: float, window: int, shift_h: int, shift_w: int,
) -> tuple[Tensor, Tensor, Tensor]:
    # fmt: on
    d_qkv, d_bias, d_scales = run_backward(gradient, qkv, bias, scales, scale, window, shift_h, shift_w)
    return d_qkv, d_bias, bias.new_empty(0) if d_scales is None else d_scales


# fmt: off
@_backward.register_fake
def _(
    gradient: Tensor, qkv: Tensor, bias: Tensor, scales: Tensor | None,
    scale: float, window: int, shift_h: int, shift_w: int,
) -> tuple[Tensor, Tensor, Tensor]:
    # fmt: on
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape), bias.new_empty(0 if scales is None else len(bias))
