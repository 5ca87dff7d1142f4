"""Nested dictionaries, lists and tuples of tensors."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(value: Any, function: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Applies a function to every tensor, or instance of `kind`, in nested dictionaries, lists and tuples."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(each, function, kind) for key, each in value.items()}
    if isinstance(value, list | tuple):
        mapped = [map_tensors(each, function, kind) for each in value]
        return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
    return value
