"""How a model trains on several ranks: wrapping, synchronisation of gradients, their norm."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import World


def wrap(model: nn.Module, world: World) -> nn.Module:
    """Returns the model that averages its gradients over the ranks; the model itself for a single process."""
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def synchronize(wrapped: nn.Module, enabled: bool) -> AbstractContextManager:
    """Returns the context of a backward pass; gradients are exchanged in it only if `enabled`."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not enabled else nullcontext()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> tuple[float, bool]:
    """Clips the gradients in place; 0 clips nothing.

    Returns: their norm before clipping, and whether it is finite; the same on every rank.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
    finite = bool(torch.isfinite(norm))
    return float(norm), finite
