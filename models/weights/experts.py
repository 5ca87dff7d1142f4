"""Weights of mixtures of experts: what files of older versions store differently, and checks of how many there are."""

import re
from collections.abc import Mapping

from torch import Tensor

from models.weights.checks import WrongModelError
from utils.errors import CheckpointError, count

_LAYER = re.compile(r"(.*\._moe_layer)\.")
_BIAS = re.compile(r".*\.experts\.batched_fc[12]_bias")
_ROUTERS = {"wg.weight": (0, "linear"), "sim_matrix": (1, "cosine")}  # the dimension of the experts


def flat_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors with the biases of experts as (experts, channels); older files have (experts, 1, channels)."""
    return {
        name: value.squeeze(1) if _BIAS.fullmatch(name) and value.ndim == 3 else value
        for name, value in tensors.items()
    }


def check_experts(given: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str) -> None:
    """Compares the mixtures of experts of a file with those of a model, both under the original's names.

    Raises: CheckpointError if only one of them has any, or they have other routers or numbers of experts.
    """
    theirs, ours = _layers(given), _layers(own)
    if bool(theirs) != bool(ours):
        has, lacks = ("file", "model") if theirs else ("model", "file")
        raise WrongModelError(
            origin, f"the {lacks} has no experts, the {has} has them in {count(len(theirs or ours), 'block')}"
        )
    for layer in theirs.keys() & ours.keys():
        (kind, number), (own_kind, own_number) = theirs[layer], ours[layer]
        if kind != own_kind:
            raise CheckpointError(
                f"the file has {kind} routers, the model {own_kind} ones: {origin}: set MODEL.SWIN_MOE.COSINE_ROUTER"
                f" {kind == 'cosine'}"
            )
        if number != own_number:
            raise CheckpointError(
                f"the file has {number} experts per layer, the model {own_number}: {origin}: set"
                f" MODEL.SWIN_MOE.NUM_EXPERTS {number}"
            )


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, int]]:
    """Returns the kind of router and the number of experts of every mixture of experts."""
    found = {}
    for name, value in tensors.items():
        layer = _LAYER.match(name)
        for ending, (dim, kind) in _ROUTERS.items():
            if layer and name.endswith(f".gates.0.{ending}") and value.ndim == 2:
                found[layer[1]] = (kind, value.shape[dim])
    return found
