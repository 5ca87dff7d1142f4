"""Caches tensors derived from parameters during evaluation: position biases, weights cast to bfloat16."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_kept: list[dict[Any, tuple[tuple[Tensor, ...], Tensor]]] = []  # one per active `keep_derived`


@contextmanager
def keep_derived() -> Iterator[None]:
    """Computes every derived tensor only once within the block, which must not change the model.

    Outside of such a block they are computed in every forward pass: a change of a parameter cannot be detected
    reliably, since writing through `parameter.data` leaves no trace.
    """
    _kept.append({})
    try:
        yield
    finally:
        _kept.pop()


def derived(compute: Callable[[], Tensor], *sources: Tensor) -> Tensor:
    """Returns compute(), a function of `sources` only; cached within `keep_derived`, without gradients.

    Args: sources: the first is the cache key, so it must belong to a single call site of `derived`.
    """
    if not _kept or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return compute()
    key = tuple((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in sources)
    if key not in _kept[-1]:
        _kept[-1][key] = (sources, compute())  # keeps the sources, too: their memory must not be reused meanwhile
    return _kept[-1][key][1]
