"""Choice between the equivalent implementations ("forms") of an operator, by shape, dtype and device.

The first form of an operator is its default. Others are used only once `use_forms` has chosen them, normally by a
measurement on the machine (models/ops/measure.py), and never within torch.compile.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

FORMS = {
    "linear": ("onednn", "plain"),  # without gradients
    "linear_gelu": ("onednn", "plain"),
    "attention": ("fused", "explicit"),  # without gradients
    "mlp": ("chunks", "whole"),  # with gradients
    "precision": ("bfloat16", "float32"),  # of all matrix products, see utils/precision.py
}


Forms = dict[str, str]  # {key: form}


class Request(NamedTuple):
    """A call of an operator: `sizes` of its parameters, `rows` of the input (tokens or windows)."""

    operator: str
    sizes: tuple[int, ...]
    rows: int
    dtype: torch.dtype
    device: str


_chosen: dict[str, str] = {}
_recorded: list[dict[str, Request]] = []


def form_of(operator: str, sizes: tuple[int, ...], x: Tensor, rows: int) -> str:
    """Returns the form of an operator to use for an input like `x`."""
    default = FORMS[operator][0]
    if torch.compiler.is_compiling():
        return default
    key = f"{operator} {'x'.join(map(str, sizes))} {str(x.dtype).removeprefix('torch.')}"
    for requests in _recorded:
        requests.setdefault(key, Request(operator, sizes, rows, x.dtype, x.device.type))
    return _chosen.get(key, default) if x.device.type == "cpu" else default


def use_forms(forms: Mapping[str, str]) -> None:
    """Sets the forms used from now on.

    Args: forms: {key: form}, as recorded and measured. Anything not listed, or unknown here, uses its default.
    """
    _chosen.clear()
    _chosen.update({key: form for key, form in forms.items() if form in FORMS.get(key.partition(" ")[0], ())})


@contextmanager
def recorded_requests() -> Iterator[dict[str, Request]]:
    """Yields a dictionary that receives the requests made in the block, one for each key."""
    _recorded.append({})
    try:
        yield _recorded[-1]
    finally:
        _recorded.pop()
