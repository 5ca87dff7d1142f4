"""Mixed precision: the dtype of matrix products, and the loss scaling that float16 needs."""

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from yacs.config import CfgNode

log = logging.getLogger(__name__)
MEASURED = "precision"  # key of the measured dtype among the forms of a run
_MEASURED = {"bfloat16": torch.bfloat16, "float32": torch.float32}


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

    def chosen(self, forms: Mapping[str, str]) -> "Precision":
        """Returns the precision that was measured to be the faster one. Args: forms: as stored in a checkpoint."""
        dtype = _MEASURED.get(forms.get(MEASURED, ""))
        return self if dtype is None or self.device_type != "cpu" else Precision("cpu", dtype)

    def autocast(self) -> AbstractContextManager:
        """Returns the context of the forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Returns the loss scaler, which prevents float16 gradients from underflowing; a no-op for other dtypes."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)


def choose_precision(device: torch.device, enabled: bool = True, dtype: str = "auto") -> Precision:
    """Resolves `dtype`: "auto" is bfloat16 where the hardware supports it, else float16 on CUDA, else float32.

    On a CPU, the choice of "auto" is then measured (models/ops/measure.py) and stored, so that a resumed run makes the
    same one. A dtype chosen by name is used even if it is slower than float32 on this CPU, with a warning.
    """
    if not enabled:
        return Precision(device.type, torch.float32)
    if dtype != "auto":
        if device.type == "cpu":
            warn_if_slower(dtype)
        return Precision(device.type, getattr(torch, dtype))
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("cuda", torch.bfloat16 if native else torch.float16)
    if device.type == "cpu" and _cpu_supports_bfloat16():
        return Precision("cpu", torch.bfloat16)
    return Precision(device.type, torch.float32)


@cache
def warn_if_slower(dtype: str) -> None:
    """Warns, once per process, if matrix multiplication in `dtype` is slower than in float32 on this CPU."""
    ratio = relative_speed(getattr(torch, dtype))
    if ratio < 1:
        text = "AMP_DTYPE %s is slower than float32 on this CPU: matrix multiplication takes about %.2g times as long"
        log.warning(text + "; consider AMP_DTYPE auto", dtype, 1 / ratio)


def relative_speed(dtype: torch.dtype) -> float:
    """Returns the speed of matrix multiplication in a `dtype` other than float32, relative to float32, on this CPU.

    Takes a few milliseconds, or some tenths of a second without hardware for `dtype`.
    Returns: the ratio of the medians of 5 interleaved runs.
    """
    matrices = {each: torch.ones(256, 256, dtype=each) for each in (torch.float32, dtype)}
    seconds: dict[torch.dtype, list[float]] = {each: [] for each in matrices}
    for _ in range(6):
        for each, matrix in matrices.items():
            begun = time.perf_counter()
            matrix @ matrix
            seconds[each].append(time.perf_counter() - begun)
    single, other = (median(each[1:]) for each in seconds.values())  # the first starts the threads
    return single / other


def _cpu_supports_bfloat16() -> bool:
    # get_capabilities is missing in some supported versions of torch
    found: Mapping = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
