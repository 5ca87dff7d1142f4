"""A pre-norm residual branch with stochastic depth, in the form that is fastest for its device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.kernels import may_use_kernels
from models.layers import as_autocast, autocast_dtype
from models.stochastic_depth import Kept, add_branch


def add_normed_branch(x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], kept: Kept) -> Tensor:
    """Returns x + branch(norm(x)) of the samples that keep the branch, scaled, and x of the others.

    Args: x (B, H, W, C); branch maps (b, H, W, C), in the type of matrix products, to the same shape.
    """
    dtype = autocast_dtype(x)
    if not (_fits(x, norm, kept) and may_use_kernels(x, dtype)):
        return add_branch(x, lambda chosen: branch(as_autocast(norm(chosen))), kept)
    from models import residual_kernel  # only where it is used: Triton need not be installed

    assert isinstance(norm, nn.LayerNorm) and not isinstance(kept, Tensor)
    normed, x = residual_kernel.norm_of_chosen(x, norm, kept, dtype)
    out = branch(normed)
    return x + out if kept is None else residual_kernel.add_scaled(x, out, kept)


def _fits(x: Tensor, norm: nn.Module, kept: Kept) -> bool:
    """Returns whether the kernels of both ends compute this branch.

    Where the main branch is in half precision (after a merging), only evaluation was measured to be faster by them.
    """
    if torch.compiler.is_compiling() or (x.dtype != torch.float32 and torch.is_grad_enabled()):
        return False
    plain = type(norm) is nn.LayerNorm and norm.bias is not None and x.numel() > 0
    return plain and not (norm._forward_hooks or norm._forward_pre_hooks) and not isinstance(kept, Tensor)
