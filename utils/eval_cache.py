"""Tensors computed from parameters, such as a position bias or a weight in another type, kept during an evaluation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_kept: list[dict[Any, tuple[tuple[Tensor, ...], Tensor]]] = []  # one for each `keep_derived` that is active


@contextmanager
def keep_derived() -> Iterator[None]:
    """Computes every derived tensor once in the block, which must not change the model.

    Outside of such a block they are computed with every forward pass: nothing can tell for certain that a parameter is
    still the same, since writing through `parameter.data` leaves no trace.
    """
    _kept.append({})
    try:
        yield
    finally:
        _kept.pop()


def derived(compute: Callable[[], Tensor], *sources: Tensor) -> Tensor:
    """Returns compute(), a function of `sources` and of nothing else; kept in `keep_derived`, without gradients.

    Args: sources: the first one identifies what is computed, so it belongs to one call of `derived` only.
    """
    if not _kept or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return compute()
    key = tuple((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in sources)
    if key not in _kept[-1]:
        _kept[-1][key] = (sources, compute())  # the sources too: their memory must not be used for others meanwhile
    return _kept[-1][key][1]
