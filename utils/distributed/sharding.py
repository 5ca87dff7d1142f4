"""Sharded parameters: gathering them for checkpoints, and norms over all shards.

A shard is a parameter under FSDP, torch's DTensor, or the local experts of a mixture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.distributed.experts import Placement, expert_parameters, group_sum, own_part, whole_tensor


class Shard(Protocol):
    """The sharding of a parameter, and of any tensor of its shape such as an optimizer moment.

    Equal shards have their parts on the same ranks.
    """

    def numel(self, part: Tensor) -> int:
        """Returns the number of elements of the whole tensor."""
        ...

    def whole(self, part: Tensor) -> Tensor:
        """Gathers the whole tensor. A collective operation. Args: part: this rank's part."""
        ...

    def part(self, whole: Tensor) -> Tensor:
        """Returns this rank's part of a whole tensor."""
        ...

    def holder(self, rank: int) -> int:
        """Returns the first rank with the same part as `rank`."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Sums values over all parts. A collective operation. Args: values: computed from this rank's part."""
        ...


class DTensorShard:
    """A parameter under FSDP. Args: parameter: a DTensor."""

    def __init__(self, parameter: Any):
        self._mesh, self._placements = parameter.device_mesh, parameter.placements

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DTensorShard) and self._mesh is other._mesh

    def __hash__(self) -> int:
        return id(self._mesh)

    def numel(self, part: Any) -> int:
        return part.numel()

    def whole(self, part: Any) -> Tensor:
        return part.full_tensor()

    def part(self, whole: Tensor) -> Tensor:
        from torch.distributed.tensor import distribute_tensor  # slow to import

        whole = whole.to(self._mesh.device_type)
        return distribute_tensor(whole, self._mesh, self._placements, src_data_rank=None)  # every rank has it

    def holder(self, rank: int) -> int:
        return rank

    def total(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self._mesh.get_group())
        return values


@dataclass(frozen=True)
class ExpertShard:
    """A parameter of this rank's experts."""

    name: str = field(compare=False)
    placement: Placement

    def numel(self, part: Tensor) -> int:
        return part.numel() * self.placement.group_size

    def whole(self, part: Tensor) -> Tensor:
        return whole_tensor(self.name, part, self.placement)

    def part(self, whole: Tensor) -> Tensor:
        return own_part(self.name, whole, self.placement)

    def holder(self, rank: int) -> int:
        return rank % self.placement.group_size

    def total(self, values: Tensor) -> Tensor:
        return group_sum(values, self.placement)


def shards_of(model: nn.Module) -> dict[str, Shard]:
    """Returns the sharded parameters of a model, by name."""
    shards: dict[str, Shard] = {name: DTensorShard(p) for name, p in model.named_parameters() if is_dtensor(p)}
    placed = expert_parameters(model).items()
    return shards | {name: ExpertShard(name, placement) for name, placement in placed if placement.group_size > 1}


def is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")  # without importing DTensor, which takes a second


def needs_all_ranks(model: nn.Module) -> bool:
    """Returns whether a forward pass of the model is a collective operation."""
    return bool(shards_of(model))


def local_part(tensor: Any) -> Tensor:
    """Returns the plain tensor behind a DTensor; any other tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole_tensors(tensors: Mapping[str, Any], shards: Mapping[str, Shard], keep: bool) -> dict[str, Any]:
    """Replaces this rank's parts by whole tensors on the CPU. A collective operation.

    Args: tensors: by parameter name; other entries are passed through; keep: whether this rank needs the result;
    otherwise it gets None in place of the tensors.
    """
    return {name: _collected(shards[name].whole, t, keep) if name in shards else t for name, t in tensors.items()}


def whole_moments(
    optimizer: Mapping[str, Any], names: Mapping[int, str], shards: Mapping[str, Shard], keep: bool
) -> dict[str, Any]:
    """Applies `whole_tensors` to the state dict of an optimizer. Args: names: parameter names, by index."""
    state = _map_moments(optimizer["state"], names, shards, lambda shard, part: _collected(shard.whole, part, keep))
    return {**optimizer, "state": state}


def own_moments(state: Mapping[int, Any], names: Mapping[int, str], shards: Mapping[str, Shard]) -> dict[int, Any]:
    """Inverts `whole_moments` without communication. Args: state: the optimizer's, by index."""
    return _map_moments(state, names, shards, lambda shard, whole: shard.part(whole))


def _map_moments(
    state: Mapping[int, Any], names: Mapping[int, str], shards: Mapping[str, Shard], convert: Callable[..., Any]
) -> dict[int, Any]:
    def moments(number: int, values: Mapping[str, Any]) -> dict[str, Any]:
        shard = shards.get(names[number])
        return {k: convert(shard, v) if shard and isinstance(v, Tensor) and v.ndim else v for k, v in values.items()}

    return {number: moments(number, values) for number, values in state.items()}


def total_norms(names: tuple[str, ...], norms: Tensor, shards: Mapping[str, Shard]) -> Tensor:
    """Computes the norms of whole tensors from the norms of this rank's parts. A collective operation.

    Args: names: names of the tensors; norms float32 (N,), in the same order on every rank.
    """
    squares = norms.square()
    for shard in dict.fromkeys(shards.values()):
        mine = torch.tensor([shards.get(name) == shard for name in names], device=norms.device)
        squares = torch.where(mine, shard.total(torch.where(mine, squares, 0.0)), squares)
    return squares.sqrt()


def _collected(gather: Callable[[Tensor], Tensor], part: Tensor, keep: bool) -> Tensor | None:
    whole = gather(part.detach())
    return whole.cpu() if keep else None
