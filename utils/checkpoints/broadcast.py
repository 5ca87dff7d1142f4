"""Reads on the main rank and broadcasts, so that the other ranks need no access to its disk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from utils.distributed.world import World
from utils.nested import map_tensors

T = TypeVar("T")


@dataclass(frozen=True)
class _Shape:
    """Placeholder for a tensor, which is sent separately."""

    size: tuple[int, ...]
    dtype: torch.dtype


def read_once(world: World, read: Callable[[], T]) -> T:
    """Calls `read` on the main rank; returns its result (nested dictionaries, lists, tensors, plain values) on all.

    If `read` fails, the error ends all ranks.
    """
    if world.size == 1:
        return read()
    tensors: list[Tensor] = []

    def take(tensor: Tensor) -> _Shape:
        tensors.append(tensor)
        return _Shape(tuple(tensor.shape), tensor.dtype)

    def send(shape: _Shape) -> Tensor:
        # on the main rank, a tensor may be a view of a larger one
        tensor = tensors.pop(0).contiguous() if world.is_main else torch.empty(shape.size, dtype=shape.dtype)
        world.broadcast_tensor(tensor)
        return tensor

    outline = world.main_only(lambda: map_tensors(read(), take))
    return map_tensors(outline, send, _Shape)
