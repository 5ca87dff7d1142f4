"""Process settings that speed up tensor operations on the CPU."""

import ctypes
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from utils.errors import count

# parameters of glibc's mallopt
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _GIBIBYTE = -1, 2**30


def device_name(device: torch.device) -> str:
    """Returns the name of the GPU, or of the processor with torch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {count(torch.get_num_threads(), 'thread')} each"


def processor_name() -> str:
    """Returns the name of the processor with the instruction sets that torch uses, "AMD EPYC (AVX512, bfloat16)":
    different processors may have the same name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    found: Mapping = getattr(torch.cpu, "get_capabilities", dict)()  # missing in some supported versions of torch
    special = {"AMX": ("amx_bf16",), "bfloat16": ("avx512_bf16", "bf16")}
    sets = [each for each, keys in special.items() if any(found.get(key) for key in keys)]
    return f"{name} ({', '.join([torch.backends.cpu.get_cpu_capability(), *sets])})"


def tune_process(device: torch.device) -> None:
    """Prepares this process to run a model on `device`; call it before torch starts any threads.

    On the CPU, freed memory is kept for reuse: glibc returns large blocks to the system at once, and page faults would
    take a tenth or more of every training step. Denormals (below 1e-38) are flushed to zero: the attention weights of
    masked tokens in a shifted map, exp(-100), are denormal, and make matrix products up to 30 times slower on some
    processors.
    """
    if device.type != "cpu":
        return
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # glibc's
    # older versions allow 32 MiB at most; the trim threshold alone would freeze the mmap threshold at 128 KiB
    if mallopt is not None and (mallopt(_M_MMAP_THRESHOLD, _GIBIBYTE) or mallopt(_M_MMAP_THRESHOLD, 2**25)):
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back_memory() -> None:
    """Returns freed memory to the system, so that later memory use can be measured."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
