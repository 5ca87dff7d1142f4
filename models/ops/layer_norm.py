"""LayerNorm before matrix products, in the fastest implementation for the device."""

import torch
from torch import Tensor, nn

from models.ops.kernels import may_use_kernels
from models.ops.linear import as_autocast, autocast_dtype


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm whose output has the dtype of matrix products under autocast.

    Without gradients, on a GPU in half precision, a single kernel normalises and casts.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            dtype = autocast_dtype(x)
            if may_use_kernels(x, dtype) and x.numel():
                from models.ops.norm_kernel import layer_norm  # imported here: Triton is optional

                return layer_norm(x, self, dtype)
        return as_autocast(super().forward(x))
