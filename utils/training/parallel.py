"""Training on several ranks: sharding, wrapping, gradient synchronisation, gradient norms, weight comparison."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from utils.distributed.experts import Placement, shard_experts, sharded_modules
from utils.distributed.sharding import Shard, is_dtensor, local_part, shards_of, total_norms
from utils.distributed.world import World
from utils.errors import DistributedError, count

_BLOCK = re.compile(r"(^|\.)blocks\.\d+(\.\d+)?$")  # in our models and in timm's transformers
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class ParallelOptions:
    """`kind`: "ddp", every rank holds the whole model, or "fsdp", every rank holds a part of every parameter;
    `gather_dtype`: dtype in which FSDP gathers parameters; `local_experts`: per rank, or minus the number of ranks that
    share one (see `Placement.of`)."""

    kind: str = "ddp"
    gather_dtype: torch.dtype = torch.float32
    local_experts: int = 1

    @staticmethod
    def from_config(cfg: CfgNode) -> "ParallelOptions":
        local_experts = cfg.MODEL.SWIN_MOE.NUM_LOCAL_EXPERTS
        return ParallelOptions(cfg.TRAIN.PARALLEL, getattr(torch, cfg.TRAIN.FSDP_DTYPE), local_experts)


def shard(model: nn.Module, world: World, options: ParallelOptions) -> None:
    """Shards the parameters in place, as configured. A collective operation.

    FSDP (arXiv 2304.11277, torch's fully_shard) gathers the parameters of a block before its forward and backward pass
    and frees them afterwards. Otherwise only the experts of a mixture are sharded.
    """
    if options.kind != "fsdp":
        _place_experts(model, world, options.local_experts)
        return
    if world.size == 1:
        model.to(world.device)
        return
    from torch.distributed.device_mesh import init_device_mesh  # slow to import
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    # the residual stream stays in float32, and gradients are averaged in float32
    policy = MixedPrecisionPolicy(options.gather_dtype, torch.float32, cast_forward_inputs=False)
    blocks = [module for name, module in model.named_modules() if _BLOCK.search(name)]
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)


def _place_experts(model: nn.Module, world: World, local_experts: int) -> None:
    experts = next((module.placement.experts for _, module in sharded_modules(model)), 0)
    placement = Placement.of(experts, local_experts, world.rank, world.size) if experts else Placement(0)
    if placement.group_size > 1:
        shard_experts(model, placement)


def describe_parallel(model: nn.Module, world: World, options: ParallelOptions) -> list[str]:
    """Returns log lines on the sharding."""
    if options.kind == "fsdp":
        return ["parallel: " + (f"FSDP over {world.size} ranks" if world.size > 1 else "one rank, FSDP shards nothing")]
    placement = next((module.placement for _, module in sharded_modules(model)), None)
    if placement is None:
        return []
    slices = f" in {placement.slices} slices" if placement.slices > 1 else ""
    groups = f", in {placement.replicas} groups of ranks" if placement.replicas > 1 and placement.group_size > 1 else ""
    return [
        f"parallel: {count(placement.experts, 'expert')} per layer{slices}, {placement.local_units} on each of"
        f" {count(world.size, 'rank')}{groups}"
    ]


def wrap(model: nn.Module, world: World) -> nn.Module:
    """Wraps the model to average its gradients across the ranks; returns it unchanged for a single process or FSDP."""
    if world.size == 1 or any(is_dtensor(p) for p in model.parameters()):
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    placed = list(shards_of(model))  # reduce_expert_gradients averages theirs
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, placed)
    wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    # broadcast with every update; the argument of that name is deprecated, and older versions lack its successor
    wrapped.broadcast_buffers = any(True for _ in changing_buffers(model))
    return wrapped


def changing_buffers(module: nn.Module) -> Iterator[Tensor]:
    """Yields the buffers that training changes, such as the running statistics of BatchNorm: floating-point and
    persistent. Swin has only constant ones."""
    stored = module.state_dict()
    return (buffer for name, buffer in module.named_buffers() if name in stored and buffer.is_floating_point())


def synchronize(wrapped: nn.Module, enabled: bool) -> AbstractContextManager:
    """Returns the context of a backward pass; gradients are synchronised only if `enabled`."""
    sharded: Any = wrapped
    if hasattr(wrapped, "set_requires_gradient_sync"):  # FSDP
        sharded.set_requires_gradient_sync(enabled)
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not enabled else nullcontext()


def gradient_norms(model: nn.Module, shards: Mapping[str, Shard] | None = None) -> tuple[tuple[str, ...], Tensor]:
    """Returns the names of the N parameters with a gradient, and the gradients' norms: float32 (N,) on the device, the
    same on every rank."""
    found = [(name, local_part(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    names = tuple(name for name, _ in found)
    norms = torch.stack(torch._foreach_norm([grad for _, grad in found], dtype=torch.float32))
    return names, total_norms(names, norms, shards) if shards else norms


def synchronize_buffers(modules: Iterable[nn.Module], world: World) -> None:
    """Broadcasts the buffers that training changes, such as the running statistics of BatchNorm.

    Training is unaffected: DistributedDataParallel does the same before every forward pass.
    """
    for module in modules:
        for buffer in changing_buffers(module):
            world.broadcast_tensor(buffer)


def weights_are_finite(model: nn.Module, world: World) -> bool:
    """Returns whether all weights on all ranks are finite. A collective operation."""
    own = all(bool(torch.isfinite(local_part(p)).all()) for p in model.parameters())
    return all(world.gather_objects(own))


def check_weights(model: nn.Module, world: World, position: str) -> None:
    """Checks that all ranks have the same weights, or the same part of sharded ones, by checksums of their bits.

    Raises: DistributedError on every rank, naming the first tensor that differs.
    """
    if world.size == 1:
        return
    names, sums, shards = [], [], shards_of(model)
    for name, parameter in model.named_parameters():
        bits = local_part(parameter).detach().contiguous().view(-1).view(_INTEGERS[parameter.element_size()])
        names.append(name)
        sums.append(bits.sum(dtype=torch.int64))
    ranks = world.gather_objects(torch.stack(sums).tolist())
    for rank, theirs in enumerate(ranks):
        for i, name in enumerate(names):
            other = shards[name].holder(rank) if name in shards else 0
            if theirs[i] != ranks[other][i]:
                raise DistributedError(
                    f"rank {rank}",
                    f"its weights differ from rank {other} at {position}, first in {name}; its memory or device is"
                    " probably faulty",
                    "run the same command again, without that machine, to resume",
                )
