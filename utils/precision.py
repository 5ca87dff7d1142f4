"""Mixed precision: the dtype of matrix products, and the loss scaling that float16 needs."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from yacs.config import CfgNode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """The dtype of matrix products on a device; float32 means no mixed precision."""

    device_type: str
    dtype: torch.dtype

    @staticmethod
    def from_config(cfg: CfgNode, device: torch.device) -> "Precision":
        return choose_precision(device, enabled=cfg.AMP_ENABLE, dtype=cfg.AMP_DTYPE)

    def __str__(self) -> str:
        return "float32" if self.dtype == torch.float32 else f"mixed {str(self.dtype).removeprefix('torch.')}"

    def autocast(self) -> AbstractContextManager:
        """Returns the context of the forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Returns the loss scaler, which prevents float16 gradients from underflowing; a no-op for other dtypes."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)


def choose_precision(
    device: torch.device, enabled: bool = True, dtype: str = "auto", speed: Callable[[torch.dtype], float] | None = None
) -> Precision:
    """Resolves `dtype`: "auto" is bfloat16 where the hardware supports it, else float16 on CUDA, else float32.

    On a CPU, matrix products must also be measured to be faster than in float32; a `dtype` chosen by name is used even
    if they are slower, with a warning.
    Args: speed: of products in a dtype on the CPU, relative to float32 (default: `relative_speed`).
    """
    if not enabled:
        return Precision(device.type, torch.float32)
    speed = speed or relative_speed
    if dtype != "auto":
        chosen = getattr(torch, dtype)
        if device.type == "cpu" and (ratio := speed(chosen)) < 1:
            text = "AMP_DTYPE %s: matrix products take %.3g times as long as in float32 on this processor"
            log.warning(text + " (--opts AMP_DTYPE auto)", dtype, 1 / ratio)
        return Precision(device.type, chosen)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("cuda", torch.bfloat16 if native else torch.float16)
    if device.type == "cpu" and _cpu_supports_bfloat16() and speed(torch.bfloat16) > 1:
        return Precision("cpu", torch.bfloat16)
    return Precision(device.type, torch.float32)


@cache
def relative_speed(dtype: torch.dtype) -> float:
    """Returns the speed of matrix products in `dtype` on this CPU relative to float32, the median of 5 in turn.

    Takes milliseconds, or a tenth of a second without hardware for `dtype`.
    """
    matrices = {each: torch.ones(256, 256, dtype=each) for each in (torch.float32, dtype)}
    seconds: dict[torch.dtype, list[float]] = {each: [] for each in matrices}
    for _ in range(6):
        for each, matrix in matrices.items():
            begun = time.perf_counter()
            matrix @ matrix
            seconds[each].append(time.perf_counter() - begun)
    single, other = (median(each[1:]) for each in seconds.values())  # without the first, which starts threads
    return single / other


def _cpu_supports_bfloat16() -> bool:
    # get_capabilities is missing in some supported versions of torch
    found: Mapping = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
