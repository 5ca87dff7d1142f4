"""Mixed precision: the dtype of matrix products, and the loss scaling that float16 needs."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from yacs.config import CfgNode


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


def choose_precision(device: torch.device, enabled: bool = True, dtype: str = "auto") -> Precision:
    """Resolves `dtype`: "auto" is bfloat16 where the hardware supports it, else float16 on CUDA, else float32."""
    if not enabled:
        return Precision(device.type, torch.float32)
    if dtype != "auto":
        return Precision(device.type, getattr(torch, dtype))
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("cuda", torch.bfloat16 if native else torch.float16)
    if device.type == "cpu" and _cpu_supports_bfloat16():
        return Precision("cpu", torch.bfloat16)
    return Precision(device.type, torch.float32)


def _cpu_supports_bfloat16() -> bool:
    # get_capabilities is missing in some supported versions of torch
    found: Mapping = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
