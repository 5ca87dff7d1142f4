"""A pre-norm residual branch with stochastic depth, in the form that is fastest for its device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.ops.kernels import may_use_kernels
from models.ops.linear import as_autocast, autocast_dtype, has_hooks
from models.ops.stochastic_depth import BranchMask, add_branch


def add_normed_branch(x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], mask: BranchMask) -> Tensor:
    """Returns x + branch(norm(x)) of the samples that keep the branch, scaled, and x of the others.

    Args: x (B, H, W, C); branch maps (b, H, W, C), in the type of matrix products, to the same shape.
    """
    return add_branch(x, lambda chosen: branch(_normed(norm, chosen)), mask)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return as_autocast(norm(x))
    plain = type(norm) is nn.LayerNorm and norm.bias is not None and not has_hooks(norm)
    dtype = autocast_dtype(x)
    if not (plain and x.numel() and may_use_kernels(x, dtype)):
        return as_autocast(norm(x))
    from models.ops.norm_kernel import layer_norm  # only where it is used: Triton need not be installed

    return layer_norm(x, norm, dtype)  # type: ignore[arg-type]
