"""State dict -> model: find the weights in a file's contents, check every name and shape, load."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.errors import WeightsError

# computed from the configuration, though older files hold them
DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")
PREFIXES = ("module.", "_orig_mod.")
WRAPPERS = ("model_ema", "model", "state_dict")


def find_weights(contents: Mapping[str, Any], origin: str) -> tuple[dict[str, Tensor], str]:
    """The state dict in what a file holds, under the original's names.

    Averaged weights are taken where the file holds them: they are the ones that its accuracy was measured with.

    Returns: weights without derived tensors and prefixes, and where in the file they stood.
    Raises: WeightsError if there are none.
    """
    found: Any = contents
    place = "top level"
    for wrapper in WRAPPERS:
        if isinstance(contents.get(wrapper), Mapping):
            found, place = contents[wrapper], wrapper
            break
    weights = {_bare(name): value for name, value in found.items() if isinstance(value, Tensor)}
    weights = {name: value for name, value in weights.items() if name.rsplit(".", 1)[-1] not in DERIVED}
    if not weights:
        raise WeightsError(f"no weights: {origin}: it holds {_some(list(contents))}, but no tensors by name")
    return weights, place


def count_classes(weights: Mapping[str, Tensor], origin: str) -> int:
    """Outputs of the head. Raises: WeightsError if the weights have no head."""
    if "head.weight" not in weights:
        raise WeightsError(f"no head.weight: {origin}: these weights classify nothing; name those of a classifier")
    return len(weights["head.weight"])


def load_contents(model: nn.Module, contents: Mapping[str, Any], origin: str, new_head: bool = False) -> str:
    """`find_weights`, then `load_weights`."""
    return load_weights(model, find_weights(contents, origin)[0], origin, new_head)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str, new_head: bool = False) -> str:
    """Copy `weights` into `model`.

    Args: new_head: keep the model's fresh head where the weights' head has another number of classes or is missing.
    Returns: a line that says what was loaded.
    Raises: WeightsError with the first names that are missing, unexpected, or of another shape.
    """
    own = model.state_dict()
    weights = dict(weights)
    note = ""
    if new_head and _shape(weights, "head.weight") != _shape(own, "head.weight"):
        note = f", a fresh head for {len(own['head.weight'])} classes"
        weights.update({name: own[name] for name in ("head.weight", "head.bias")})
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {_shape(weights, name)} for {_shape(own, name)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names)
        raise WeightsError(f"the weights are not of this model: {origin}: {text}: use the --cfg they were made with")
    model.load_state_dict(weights)
    return f"{len(weights)} tensors from {origin}{note}"


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
