"""Conditions for running the Triton kernels (models/ops/*_kernel.py)."""

import importlib.util
import logging
import os
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)
HALF = (torch.bfloat16, torch.float16)


def may_use_kernels(x: Tensor, dtype: torch.dtype) -> bool:
    """Returns whether kernels are preferred for `x` with matrix products of `dtype`: on a GPU, in half precision."""
    return x.is_cuda and dtype in HALF and runs_kernels(x)


def runs_kernels(x: Tensor) -> bool:
    """Returns whether kernels can run on the device of `x`: NVIDIA GPUs of compute capability 8.0 or higher, or a CPU
    with Triton's interpreter. False while a model is being exported."""
    if is_exporting():
        return False
    return _works_on(x.device.index or 0) if x.is_cuda else _interpreted()


@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Returns whether torch.export is tracing.

    torch.compile 2.11 assumes that torch's function is always true; as a constant result, it is evaluated.
    """
    return torch.compiler.is_exporting()


@torch.compiler.assume_constant_result
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def _works_on(gpu: int) -> bool:
    return _tried_on(gpu)


@cache
def _tried_on(gpu: int) -> bool:
    """Returns whether Triton starts on a GPU, which requires a C compiler and Python's headers."""
    old = torch.version.hip is not None or torch.cuda.get_device_capability(gpu) < (8, 0)
    if old or importlib.util.find_spec("triton") is None:
        return False
    try:
        import triton

        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever is missing, training works without it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("Triton does not start (%s): install a C compiler and Python's headers for faster training", reason)
        return False
    return True
