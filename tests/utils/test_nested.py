"""Functions mapped over nested tensors."""

from typing import NamedTuple

import torch

from utils.nested import map_tensors


class Pair(NamedTuple):
    image: torch.Tensor
    name: str


def test_functions_reach_every_tensor():
    nested = {"a": [torch.tensor(1), (torch.tensor(2), "text")], "b": Pair(torch.tensor(3), "x")}
    mapped = map_tensors(nested, lambda t: t + 1)
    assert mapped == {"a": [2, (3, "text")], "b": Pair(4, "x")} and isinstance(mapped["b"], Pair)


def test_another_kind_is_mapped_in_order():
    seen = []
    assert map_tensors({"b": [1, "x"], "a": (2,)}, lambda n: seen.append(n) or -n, int) == {"b": [-1, "x"], "a": (-2,)}
    assert seen == [1, 2]
