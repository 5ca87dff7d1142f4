"""Linear layers and MLPs in the fastest implementation for the device, and dtypes under autocast."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ops.forms import form_of
from utils.eval_cache import derived, keeps_derived

CHUNK = 4096  # tokens whose hidden activation fits into the CPU cache
ONEDNN_TYPES = (torch.float32, torch.bfloat16)
ONEDNN_OPERATORS = ("_linear_pointwise", "_reorder_linear_weight")  # private ones of torch, for Inductor


class Linear(nn.Linear):
    """nn.Linear that, on the CPU without gradients, fuses bias and GELU into the matrix product (oneDNN)."""

    def forward(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """Returns x @ weight^T + bias, or its GELU if `gelu`. Args: bias: used instead of the layer's own bias."""
        bias = self.bias if bias is None else bias
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return linear_in("plain", x, self.weight, bias, gelu)
        x = as_autocast(x)
        if bias is not None and bias.dtype != x.dtype:
            bias = derived(lambda: self.bias.to(x.dtype), self.bias) if bias is self.bias else bias.to(x.dtype)
        rows = x.numel() // x.shape[-1]
        form = form_of("linear_gelu" if gelu else "linear", tuple(self.weight.shape), x, rows)
        form = form if rows and has_onednn(x) else "plain"
        weight = derived(lambda: self._weight_for(form, x.dtype, rows), self.weight, case=(form, x.dtype))
        return linear_in(form, x, weight, bias, gelu)

    def _weight_for(self, form: str, dtype: torch.dtype, rows: int) -> Tensor:
        weight = self.weight.to(dtype)
        return laid_out_for(form, weight, rows) if keeps_derived() else weight


def linear_in(form: str, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """Returns x @ weight^T + bias, or its GELU if `gelu`.

    Args: form: "plain", or "onednn", which has no gradients; weight: as it is, or `laid_out_for` the form.
    """
    if form == "onednn":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


def laid_out_for(form: str, weight: Tensor, rows: int) -> Tensor:
    """Returns a copy of the weight in the memory layout of a form, for an input of `rows` rows, more or fewer.

    oneDNN otherwise reorders the weight in every call.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows) if form == "onednn" else weight


def has_onednn(x: Tensor) -> bool:
    """Returns whether the form "onednn" exists for the device and dtype of `x`."""
    return x.device.type == "cpu" and _supports_onednn(x.dtype)


@cache
def _supports_onednn(dtype: torch.dtype) -> bool:
    """Returns whether this torch has oneDNN's linear layers, and oneDNN supports this dtype on this CPU."""
    if not all(hasattr(torch.ops.mkldnn, name) for name in ONEDNN_OPERATORS):
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return dtype in ONEDNN_TYPES and torch.backends.mkldnn.is_available()


def can_fuse(*layers: nn.Module) -> bool:
    """Returns whether `fused_mlp` may replace calls of these layers: plain types without hooks."""
    return not torch.compiler.is_compiling() and all(
        type(layer) in (Linear, nn.GELU) and not has_hooks(layer) for layer in layers
    )


def fused_mlp(x: Tensor, fc1: Linear, fc2: Linear) -> Tensor:
    """Returns fc2(gelu(fc1(x))); its backward pass recomputes the activation instead of storing it."""
    if not torch.is_grad_enabled():
        return fc2(fc1(x, gelu=True))
    bias2 = x.new_zeros(len(fc2.weight)) if fc2.bias is None else fc2.bias
    x, *weights = (as_autocast(t) for t in (x, fc1.weight, fc1.bias, fc2.weight, bias2))
    return fused_mlp_in(form_of("mlp", tuple(fc1.weight.shape), x, x.numel() // x.shape[-1]), x, *weights)


def fused_mlp_in(form: str, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Computes `fused_mlp` with gradients. Args: form: one of `FORMS["mlp"]`."""
    return _Mlp.apply(x, weight1, bias1, weight2, bias2, form == "chunks" and x.device.type == "cpu")


class _Mlp(torch.autograd.Function):
    """Linear, GELU, linear; stores the input of the GELU and recomputes its output in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, chunked: bool
    ) -> Tensor:
        rows = x.flatten(0, -2)
        hidden, out = rows.new_empty(len(rows), len(weight1)), rows.new_empty(len(rows), len(weight2))
        step = CHUNK if chunked else max(1, len(rows))
        for part in range(0, len(rows), step):
            some = slice(part, part + step)
            torch.addmm(bias1, rows[some], weight1.t(), out=hidden[some])
            torch.addmm(bias2, F.gelu(hidden[some]), weight2.t(), out=out[some])
        ctx.save_for_backward(x, hidden, weight1, weight2)
        return out.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight1, weight2 = ctx.saved_tensors
        g = gradient.flatten(0, -2)
        activated = F.gelu(hidden)
        d_weight2, d_bias2 = g.t() @ activated, g.sum(0) if ctx.needs_input_grad[4] else None
        d_hidden = torch.mm(g, weight2, out=activated)  # reuses its memory
        torch.ops.aten.gelu_backward.grad_input(d_hidden, hidden, grad_input=d_hidden)
        d_weight1, d_bias1 = d_hidden.t() @ x.flatten(0, -2), d_hidden.sum(0)
        d_x = (d_hidden @ weight1).view_as(x) if ctx.needs_input_grad[0] else None
        return d_x, d_weight1, d_bias1, d_weight2, d_bias2, None


def has_hooks(module: nn.Module) -> bool:
    """Returns whether a module has hooks, which run only if the module is called."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def no_autocast(x: Tensor) -> torch.autocast:
    """Returns a context that disables mixed precision on the device of `x`."""
    return torch.autocast(x.device.type.replace("meta", "cpu"), enabled=False)  # autocast has no meta device


def as_autocast(x: Tensor) -> Tensor:
    """Casts `x` to the dtype that autocast would use for a matrix product."""
    dtype = autocast_dtype(x)
    return x if x.dtype == dtype else x.to(dtype)  # a redundant .to would fix the dtype of an exported program


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype that autocast would use for `x` in a matrix product."""
    device = x.device.type
    enabled = device != "meta" and torch.is_autocast_enabled(device)  # autocast has no meta device
    return torch.get_autocast_dtype(device) if enabled else x.dtype
