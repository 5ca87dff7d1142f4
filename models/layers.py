"""Layers shared by the Swin families; maps are (B, H, W, C) throughout."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.eval_cache import derived

CHUNK = 4096  # tokens whose hidden activation stays in the cache of a CPU
ONEDNN_TYPES = (torch.float32, torch.bfloat16)


class PatchEmbed(nn.Module):
    """Projects the patches of an image (B, C, H, W) to a map (B, H // patch, W // patch, dim) (paper, section 3.1).

    Pixels beyond the last whole patch are dropped.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int, norm: bool = True):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        patch = self.proj.stride[0]
        if min(images.shape[-2:]) < patch:
            raise ValueError(f"an image of {tuple(images.shape[-2:])} pixels is smaller than a patch of {patch}")
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


def gather_patches(x: Tensor) -> Tensor:
    """Concatenates 2x2 neighbours: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 4 * C).

    In the order of the released models: down the first column, then the second.
    """
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    x = x.view(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


class PatchMerging(nn.Module):
    """Halves the resolution and doubles the channels: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2 * C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(gather_patches(x)))


class PostNormMerging(nn.Module):
    """PatchMerging of V2: the norm comes after the reduction (arXiv 2111.09883, section 3.2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(gather_patches(x)))


class Linear(nn.Linear):
    """nn.Linear; without gradients on the CPU, bias and GELU are applied while the product is in the cache (oneDNN)."""

    def forward(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """Returns x @ weight^T + bias, or GELU of it. Args: bias: instead of the layer's own."""
        weight, bias = self.weight, self.bias if bias is None else bias
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.gelu(F.linear(x, weight, bias)) if gelu else F.linear(x, weight, bias)
        x = as_autocast(x)
        if x.dtype != weight.dtype:
            if bias is not None:
                bias = derived(lambda: self.bias.to(x.dtype), self.bias) if bias is self.bias else bias.to(x.dtype)
            weight = derived(lambda: self.weight.to(x.dtype), self.weight)
        if x.device.type != "cpu" or not _has_kernel(x.dtype) or not x.numel():
            return F.gelu(F.linear(x, weight, bias)) if gelu else F.linear(x, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


@cache
def _has_kernel(dtype: torch.dtype) -> bool:
    """Returns whether oneDNN has linear layers of a type on this processor."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return dtype in ONEDNN_TYPES and torch.backends.mkldnn.is_available()


class Mlp(nn.Module):
    """Linear, GELU, linear on the last dimension, with dropout after both linear layers."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, fc2_bias: bool = True):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim, bias=fc2_bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2 = self.fc1, self.fc2
        if torch.compiler.is_compiling() or (self.training and self.drop.p > 0) or not self._is_plain():
            return self.drop(fc2(self.drop(self.act(fc1(x)))))
        if torch.is_grad_enabled():
            bias2 = x.new_zeros(len(fc2.weight)) if fc2.bias is None else fc2.bias
            return _Mlp.apply(*(as_autocast(t) for t in (x, fc1.weight, fc1.bias, fc2.weight, bias2)))
        return fc2(fc1(x, gelu=True))

    def _is_plain(self) -> bool:
        """Returns whether the layers are those of this file, without hooks that expect to be called."""
        layers: tuple[nn.Module, ...] = (self.fc1, self.act, self.fc2)
        return all(type(m) in (Linear, nn.GELU) and not has_hooks(m) for m in layers)


class _Mlp(torch.autograd.Function):
    """Linear, GELU, linear, remembering less: the hidden activation is computed again from its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        hidden, out = rows.new_empty(len(rows), len(weight1)), rows.new_empty(len(rows), len(weight2))
        for part in range(0, len(rows), CHUNK if x.device.type == "cpu" else len(rows)):
            some = slice(part, part + CHUNK) if x.device.type == "cpu" else slice(None)
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
        d_hidden = torch.mm(g, weight2, out=activated)  # in the memory of what is no longer needed
        torch.ops.aten.gelu_backward.grad_input(d_hidden, hidden, grad_input=d_hidden)
        d_weight1, d_bias1 = d_hidden.t() @ x.flatten(0, -2), d_hidden.sum(0)
        d_x = (d_hidden @ weight1).view_as(x) if ctx.needs_input_grad[0] else None
        return d_x, d_weight1, d_bias1, d_weight2, d_bias2


def has_hooks(module: nn.Module) -> bool:
    """Returns whether a module has hooks: they expect it to be called, not computed in another form."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def no_autocast(x: Tensor) -> torch.autocast:
    """Returns the context without mixed precision on the device of `x`."""
    return torch.autocast(x.device.type.replace("meta", "cpu"), enabled=False)  # autocast knows no meta device


def as_autocast(x: Tensor) -> Tensor:
    """Returns `x` in the type that autocast would give the operands of a matrix product."""
    dtype = autocast_dtype(x)
    return x if x.dtype == dtype else x.to(dtype)  # a needless .to would fix the type of an exported program


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Returns the type that autocast would give `x` as an operand of a matrix product."""
    device = x.device.type
    enabled = device != "meta" and torch.is_autocast_enabled(device)  # autocast knows no meta device
    return torch.get_autocast_dtype(device) if enabled else x.dtype
