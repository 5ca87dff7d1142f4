"""How a model trains on several ranks: wrapping, synchronisation of gradients, their norm, equal weights."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import World
from utils.errors import DistributedError

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def wrap(model: nn.Module, world: World) -> nn.Module:
    """Returns the model that averages its gradients over the ranks; the model itself for a single process."""
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    # sent with every update; the argument of this name is deprecated, its successor is unknown to older versions
    wrapped.broadcast_buffers = any(True for _ in changing_buffers(model))
    return wrapped


def changing_buffers(module: nn.Module) -> Iterator[Tensor]:
    """Yields the buffers that training changes, such as the running statistics of BatchNorm: floating-point, and part
    of a checkpoint. Swin's are constants, which every rank computes for itself."""
    stored = module.state_dict()
    return (buffer for name, buffer in module.named_buffers() if name in stored and buffer.is_floating_point())


def synchronize(wrapped: nn.Module, enabled: bool) -> AbstractContextManager:
    """Returns the context of a backward pass; gradients are exchanged in it only if `enabled`."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not enabled else nullcontext()


def gradient_norms(model: nn.Module) -> tuple[tuple[str, ...], Tensor]:
    """Returns the names of the N parameters that have a gradient, and its norm in each of them: float32 (N,) on the
    device, the same on every rank."""
    found = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    norms = torch._foreach_norm([grad for _, grad in found], dtype=torch.float32)
    return tuple(name for name, _ in found), torch.stack(norms)


def synchronize_buffers(modules: Iterable[nn.Module], world: World) -> None:
    """Gives every rank the main rank's floating-point buffers, such as the running statistics of BatchNorm.

    Training is unaffected: DistributedDataParallel does the same before every forward pass.
    """
    for module in modules:
        for buffer in changing_buffers(module):
            world.broadcast_tensor(buffer)


def check_weights(model: nn.Module, world: World, position: str) -> None:
    """Checks that all ranks have the same weights, by a sum over the bits of every tensor.

    Raises: DistributedError on every rank, naming the first tensor that differs.
    """
    if world.size == 1:
        return
    names, sums = [], []
    for name, parameter in model.named_parameters():
        bits = parameter.detach().contiguous().view(-1).view(_INTEGERS[parameter.element_size()])
        names.append(name)
        sums.append(bits.sum(dtype=torch.int64))
    own = torch.stack(sums).tolist()
    ranks = world.gather_objects(own)
    for rank, theirs in enumerate(ranks):
        if theirs != ranks[0]:
            name = next(name for name, a, b in zip(names, theirs, ranks[0], strict=True) if a != b)
            raise DistributedError(
                f"rank {rank} has other weights than rank 0 at {position}, the first is {name}: a fault of its memory"
                " or device is likely: run the same command again, without that machine, to resume"
            )
