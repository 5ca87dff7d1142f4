"""Settings of the process that make tensor work on a CPU faster."""

import ctypes
import platform
import sys
from pathlib import Path

import torch

from utils.errors import count

# parameters of glibc's mallopt
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _GIBIBYTE = -1, 2**30


def device_name(device: torch.device) -> str:
    """Returns what a GPU is called, or the processor and how many threads of it torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {count(torch.get_num_threads(), 'thread')} each"


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def tune_process(device: torch.device) -> None:
    """Prepares this process to run a model on `device`; to be called before it has started any threads of torch.

    On the CPU, memory that tensors leave is kept for the next ones: glibc returns large blocks to the system at once,
    and every training step would spend a tenth of its time or more on getting their pages back. Denormal numbers
    (below 1e-38) become zero: the weights that attention gives to tokens beyond the edge of a shifted map, exp(-100),
    are of this kind, and matrix products with them are up to 30 times slower on some processors.
    """
    if device.type != "cpu":
        return
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # glibc's
    # older versions allow 32 MiB at most; the other setting alone would freeze a threshold of 128 KiB
    if mallopt is not None and (mallopt(_M_MMAP_THRESHOLD, _GIBIBYTE) or mallopt(_M_MMAP_THRESHOLD, 2**25)):
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back_memory() -> None:
    """Returns the memory that was freed to the system, for measurements of what is used from here on."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
