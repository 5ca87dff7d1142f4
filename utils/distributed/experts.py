"""Expert parallelism: experts are sharded across ranks, and tokens are exchanged by all-to-all.

The unit of placement is an expert, or a slice of one along its hidden channels. The units of a layer are divided evenly
among the ranks of a group, in order; groups are replicas of each other. A model is built whole on every rank, so that
its initial weights do not depend on the number of ranks, and sharded afterwards.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import ConfigError

UNSLICED = "batched_fc2_bias"  # of an MLP: added once, after the products with all slices
_NEVER = timedelta(days=365)  # the watchdog handles timeouts
_groups: dict[tuple[Any, int], tuple[Any, Any]] = {}


@dataclass(frozen=True)
class Placement:
    """Placement of the experts of a layer: `slices` units per expert; `group_size` ranks together hold all units."""

    experts: int
    slices: int = 1
    group_size: int = 1
    rank: int = 0
    world_size: int = 1

    @staticmethod
    def of(experts: int, local_experts: int, rank: int, world_size: int) -> "Placement":
        """Places the experts of a layer.

        Args: local_experts: experts per rank, or minus the number of ranks that share one. Experts are sliced only if
        that requires exactly `world_size` ranks; otherwise every rank holds as few whole experts as possible.
        """
        if local_experts < 0 and world_size == -local_experts * experts:
            return Placement(experts, -local_experts, world_size, rank, world_size)
        return Placement(experts, 1, math.gcd(experts, world_size), rank, world_size)

    @property
    def local_units(self) -> int:
        """The number of units per rank."""
        return self.experts * self.slices // self.group_size

    @property
    def first_unit(self) -> int:
        """The first unit of this rank."""
        return self.rank % self.group_size * self.local_units

    @property
    def replicas(self) -> int:
        """The number of ranks that hold the same units."""
        return self.world_size // self.group_size


class ShardedExperts(nn.Module):
    """Experts whose parameters are stacked in dim 0, one entry per expert, or per unit once sharded.

    Slices divide the hidden channels, dim 1; only the parameter UNSLICED belongs to a whole expert and is applied by
    its first slice.
    """

    def __init__(self, experts: int):
        super().__init__()
        self.placement = Placement(experts)

    @property
    def is_remote(self) -> bool:
        """Whether some experts are on other ranks."""
        return self.placement.group_size > 1


def sharded_modules(model: nn.Module) -> Iterator[tuple[str, ShardedExperts]]:
    """Yields the expert layers of a model with their names."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, ShardedExperts))


def expert_parameters(model: nn.Module) -> dict[str, Placement]:
    """Returns the placement of all expert parameters by name; DistributedDataParallel must ignore them."""
    return {
        f"{prefix}.{name}" if prefix else name: module.placement
        for prefix, module in sharded_modules(model)
        for name, _ in module.named_parameters(recurse=False)
    }


def shard_experts(model: nn.Module, placement: Placement) -> None:
    """Replaces the parameters of every expert layer by this rank's units. A collective operation.

    Raises: ConfigError if slices do not divide the hidden channels.
    """
    modules = [module for _, module in sharded_modules(model)]
    if placement.world_size > 1 and modules:
        _process_groups(placement)
    for module in modules:
        assert module.placement == Placement(placement.experts), "sharded twice, or wrong number of experts"
        for name, p in list(module.named_parameters(recurse=False)):
            part = own_part(name, p.detach(), placement)
            setattr(module, name, nn.Parameter(part, requires_grad=p.requires_grad))
        module.placement = placement


@torch.no_grad()
def reduce_expert_gradients(model: nn.Module) -> None:
    """Averages the gradients of experts across all ranks, as DistributedDataParallel does for the other parameters.

    The gradient of an expert already includes the tokens of its group, so only the sum across replicas remains.
    A collective operation, called once per update.
    """
    for _, module in sharded_modules(model):
        placement = module.placement
        gradients = [p.grad for p in module.parameters(recurse=False) if p.grad is not None]
        if placement.world_size == 1 or not gradients:
            continue
        if placement.replicas > 1:
            group = _process_groups(placement)[1]
            pending = [dist.all_reduce(gradient, group=group, async_op=True) for gradient in gradients]
            for work in pending:
                work.wait()
        torch._foreach_div_(gradients, placement.world_size)


def gather_units(local: Tensor, placement: Placement) -> Tensor:
    """Concatenates the units of all ranks of the group: (local units, ...) -> (units, ...), without a gradient."""
    if placement.group_size == 1:
        return local.detach()
    local = local.detach().contiguous()
    parts = [torch.empty_like(local) for _ in range(placement.group_size)]
    dist.all_gather(parts, local, group=_process_groups(placement)[0])
    return torch.cat(parts)


def whole_tensor(name: str, local: Tensor, placement: Placement) -> Tensor:
    """Gathers a parameter, or a tensor of its shape such as an optimizer moment, for all experts.

    A collective operation of the group. Args: name: the parameter's name, whose last part matters; local (local
    units, ...). Returns: (experts, ...).
    """
    units, slices = gather_units(local, placement), placement.slices
    if slices == 1:
        return units
    by_expert = units.unflatten(0, (placement.experts, slices))
    return by_expert[:, 0].clone() if _is_unsliced(name) else by_expert.flatten(1, 2)


def own_part(name: str, whole: Tensor, placement: Placement) -> Tensor:
    """Inverts `whole_tensor` without communication: (experts, ...) -> (local units, ...), a copy.

    Raises: ConfigError if slices do not divide the hidden channels.
    """
    slices = placement.slices
    if slices > 1 and _is_unsliced(name):
        whole = whole.repeat_interleave(slices, 0)
    elif slices > 1:
        if whole.shape[1] % slices:
            problem = f"the {whole.shape[1]} hidden channels of an expert are not divisible by {slices} ranks"
            raise ConfigError("MODEL.SWIN_MOE.NUM_LOCAL_EXPERTS", problem, "choose a divisor")
        whole = whole.unflatten(1, (slices, -1)).flatten(0, 1)
    return whole[placement.first_unit :][: placement.local_units].clone()


def _is_unsliced(name: str) -> bool:
    return name.rpartition(".")[2] == UNSLICED


def all_to_all(x: Tensor, placement: Placement) -> Tensor:
    """Sends part i of `x` to rank i of the group and returns the received parts in rank order. Differentiable.

    Args: x (group_size * n, ...), of the same shape on every rank.
    """
    return _AllToAll.apply(x, _process_groups(placement)[0])


class _AllToAll(torch.autograd.Function):
    """all_to_all_single with equal parts, which is self-inverse and symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        x = x.contiguous()
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.apply(gradient, ctx.group), None


def group_sum(values: Tensor, placement: Placement) -> Tensor:
    """Sums a tensor across the ranks of the group, in place."""
    dist.all_reduce(values, group=_process_groups(placement)[0])
    return values


def group_maximum(value: int, placement: Placement) -> int:
    """Returns the maximum of `value` across the ranks of the group; exchanged on the CPU to avoid a GPU sync."""
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX, group=_process_groups(placement)[0])
    return int(box)


def _process_groups(placement: Placement) -> tuple[Any, Any]:
    """Returns the groups of this rank: one set of experts, and its replicas. The first call is collective."""
    key = (dist.group.WORLD, placement.group_size)
    if key not in _groups:
        ranks = torch.arange(placement.world_size).view(-1, placement.group_size)  # (replicas, group)
        _groups[key] = _own_group(ranks.tolist(), placement.rank), _own_group(ranks.T.tolist(), placement.rank)
    return _groups[key]


def _own_group(partition: list[list[int]], rank: int) -> Any:
    """Creates a process group for each part, in the same order on all ranks; returns this rank's."""
    if len(partition) == 1:
        return dist.group.WORLD
    if len(partition[0]) == 1:
        return None
    groups = [dist.new_group(ranks, timeout=_NEVER) for ranks in partition]
    return next(group for group, ranks in zip(groups, partition, strict=True) if rank in ranks)
