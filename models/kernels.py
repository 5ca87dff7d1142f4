"""Where the project's Triton kernels (models/*_kernel.py) can run."""

import importlib.util
from functools import cache
from importlib.machinery import ModuleSpec

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def may_use_kernels(x: Tensor, dtype: torch.dtype) -> bool:
    """Returns whether work on `x` with products of `dtype` may be left to a kernel: on a GPU that the tests cover,
    in half precision, and not in a model that is being exported."""
    return x.is_cuda and dtype in HALF and _is_tested() and not torch.compiler.is_exporting()


@torch.compiler.assume_constant_result
def has_triton() -> bool:
    return _triton() is not None


@torch.compiler.assume_constant_result
def _is_tested() -> bool:
    """Returns whether the GPU is one of NVIDIA's of 2020 or later, with bfloat16, and Triton is installed."""
    return torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0) and _triton() is not None


@cache
def _triton() -> ModuleSpec | None:
    return importlib.util.find_spec("triton")
