"""Caches tensors derived from parameters during evaluation: position biases, weights as matrix products need them."""

from collections.abc import Callable, Hashable, Iterator
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


def keeps_derived() -> bool:
    """Returns whether `derived` caches its results here."""
    return bool(_kept) and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def derived(compute: Callable[[], Tensor], *sources: Tensor, case: Hashable = None) -> Tensor:
    """Returns compute(), a function of `sources` and `case` only; cached within `keep_derived`, without gradients.

    Args: sources: they and `case` are the cache key, so the first must belong to a single call site of `derived`.
    """
    if not keeps_derived():
        return compute()
    key = (case, *((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in sources))
    if key not in _kept[-1]:
        _kept[-1][key] = (sources, compute())  # keeps the sources, too: their memory must not be reused meanwhile
    return _kept[-1][key][1]
