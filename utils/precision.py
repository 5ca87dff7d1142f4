"""Mixed precision: which type, and the scaling that float16 needs."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """The type of matrix products on a device; float32 means none is mixed in."""

    device_type: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return "float32" if self.dtype == torch.float32 else f"mixed {str(self.dtype).removeprefix('torch.')}"

    def autocast(self) -> AbstractContextManager:
        """Context in which the model runs."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps float16 gradients from vanishing; passes everything through for the other types."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)


def choose_precision(device: torch.device, enabled: bool, dtype: str) -> Precision:
    """`dtype` "auto" takes bfloat16 where the hardware computes it, else float16 on CUDA, else float32."""
    if not enabled:
        return Precision(device.type, torch.float32)
    if dtype != "auto":
        return Precision(device.type, getattr(torch, dtype))
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("cuda", torch.bfloat16 if native else torch.float16)
    if device.type == "cpu" and _cpu_computes_bfloat16():
        return Precision("cpu", torch.bfloat16)
    return Precision(device.type, torch.float32)


def _cpu_computes_bfloat16() -> bool:
    # get_capabilities is not in every torch this program runs with
    found: Mapping = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
