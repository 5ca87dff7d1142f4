"""Reads on the main rank and broadcasts, so that the other ranks need no access to its disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from utils.distributed.world import World

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
    outline = world.main_only(lambda: _outline(read(), tensors))
    return _fill(outline, world, iter(tensors))


def _outline(value: Any, tensors: list[Tensor]) -> Any:
    """Replaces tensors by placeholders and appends them to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Shape(tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: _outline(each, tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_outline(each, tensors) for each in value)
    return value


def _fill(value: Any, world: World, tensors: Iterator[Tensor]) -> Any:
    """Broadcasts the tensors in the order of `_outline` and replaces the placeholders by them."""
    if isinstance(value, _Shape):
        # on the main rank it may be a view of a larger one
        tensor = next(tensors).contiguous() if world.is_main else torch.empty(value.size, dtype=value.dtype)
        world.broadcast_tensor(tensor)
        return tensor
    if isinstance(value, dict):
        return {key: _fill(each, world, tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_fill(each, world, tensors) for each in value)
    return value
