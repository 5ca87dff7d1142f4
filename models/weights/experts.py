"""Weights of mixtures of experts: older formats, and checks of routers and the number of experts."""

import re
from collections.abc import Mapping

from torch import Tensor

from models.weights.checks import WrongModelError
from utils.errors import CheckpointError, count

_LAYER = re.compile(r"(.*\._moe_layer)\.")
_BIAS = re.compile(r".*\.experts\.batched_fc[12]_bias")
_ROUTERS = {"wg.weight": (0, "linear"), "sim_matrix": (1, "cosine")}  # the dimension of the experts


def flat_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reshapes biases of experts to (experts, channels); older files store (experts, 1, channels)."""
    return {
        name: value.squeeze(1) if _BIAS.fullmatch(name) and value.ndim == 3 else value
        for name, value in tensors.items()
    }


def check_experts(given: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str) -> None:
    """Compares the mixtures of experts of a file and a model, both under the original's names.

    Raises: CheckpointError if only one of them has any, or routers or numbers of experts differ.
    """
    theirs, ours = _layers(given), _layers(own)
    if bool(theirs) != bool(ours):
        has, lacks = ("file", "model") if theirs else ("model", "file")
        blocks = count(len(theirs or ours), "block")
        raise WrongModelError(origin, f"the {lacks} has no experts, the {has} has them in {blocks}")
    for layer in theirs.keys() & ours.keys():
        (kind, number), (own_kind, own_number) = theirs[layer], ours[layer]
        if kind != own_kind:
            remedy = f"set MODEL.SWIN_MOE.COSINE_ROUTER {kind == 'cosine'}"
            raise CheckpointError(origin, f"the file has {kind} routers, the model {own_kind} ones", remedy)
        if number != own_number:
            remedy = f"set MODEL.SWIN_MOE.NUM_EXPERTS {number}"
            raise CheckpointError(origin, f"the file has {number} experts per layer, the model {own_number}", remedy)


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, int]]:
    """Returns router kind and number of experts of each mixture of experts."""
    found = {}
    for name, value in tensors.items():
        layer = _LAYER.match(name)
        for ending, (dim, kind) in _ROUTERS.items():
            if layer and name.endswith(f".gates.0.{ending}") and value.ndim == 2:
                found[layer[1]] = (kind, value.shape[dim])
    return found
