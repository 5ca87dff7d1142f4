"""What one rank read, on all ranks: the disk of the main rank is enough."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from utils.distributed.world import World

T = TypeVar("T")


@dataclass(frozen=True)
class _Shape:
    """Stands for a tensor that is sent on its own."""

    size: tuple[int, ...]
    dtype: torch.dtype


def read_once(world: World, read: Callable[[], T]) -> T:
    """Calls `read` on the main rank; returns its result (nested dictionaries, lists, tensors, plain values) everywhere.

    If `read` fails, its error ends all ranks.
    """
    if world.size == 1:
        return read()
    tensors: list[Tensor] = []
    outline = world.main_only(lambda: _outline(read(), tensors))
    return _fill(outline, world, iter(tensors))


def _outline(value: Any, tensors: list[Tensor]) -> Any:
    """Replaces tensors by their shapes and appends them to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Shape(tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: _outline(each, tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_outline(each, tensors) for each in value)
    return value


def _fill(value: Any, world: World, tensors: Iterator[Tensor]) -> Any:
    """Broadcasts the tensors in the order in which `_outline` met them."""
    if isinstance(value, _Shape):
        # the main rank's own may be a view of a larger one
        tensor = next(tensors).contiguous() if world.is_main else torch.empty(value.size, dtype=value.dtype)
        world.broadcast_tensor(tensor)
        return tensor
    if isinstance(value, dict):
        return {key: _fill(each, world, tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_fill(each, world, tensors) for each in value)
    return value
