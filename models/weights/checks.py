"""Checks on weights before they are loaded into a model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from utils.checkpoints.released import released_models
from utils.errors import CheckpointError, listing


class WrongModelError(CheckpointError):
    """The weights cannot be fitted to the model."""

    def __init__(self, origin: str, reason: str, remedy: str = "use the --cfg they were trained with"):
        super().__init__(f"the weights do not belong to this model: {origin}: {reason}: {remedy}")


def check_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises: CheckpointError with the first tensor that holds NaN, Inf or complex numbers."""
    for name, value in tensors.items():
        if value.is_complex():
            raise CheckpointError(f"a weight is complex: {name} of {origin}: no model here has complex weights")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(
                f"a weight is not finite: {name} of {origin}: the file is corrupt or its training diverged"
            )


def check_names(given: Iterable[str], wanted: Iterable[str], origin: str) -> None:
    """Raises: CheckpointError with the first missing and unexpected names."""
    known, needed = dict.fromkeys(given), dict.fromkeys(wanted)
    missing, unexpected = [n for n in needed if n not in known], [n for n in known if n not in needed]
    parts = [
        f"{len(n)} {what}: {listing(n, 10)}" for what, n in (("missing", missing), ("unexpected", unexpected)) if n
    ]
    if parts:
        raise WrongModelError(origin, "; ".join(parts))


def check_kinds(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str) -> None:
    """Raises: CheckpointError for integers where the model has floating-point weights."""
    for name, value in wanted.items():
        if value.is_floating_point() and name in given and not given[name].is_floating_point():
            kind = str(given[name].dtype).removeprefix("torch.")
            raise CheckpointError(f"an integer weight ({kind}): {name} of {origin}: save it as floating point")


def misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Returns the names whose tensors differ in shape."""
    return [name for name, value in wanted.items() if name in given and given[name].shape != value.shape]


def trained_as(contents: Mapping[str, Any], origin: str) -> tuple[str, str] | None:
    """Returns whose weights a file has and the recipe to use, by its published name or the configuration in it."""
    name = Path(origin).stem
    for row in released_models():
        if name in (row["config"], Path(row.get("weights_url") or "").stem):
            return name, f"--cfg {row['config']}"
    try:
        model = yaml.safe_load(contents["config"])["MODEL"]
        sizes = model.get(model["TYPE"].upper(), {})
        known = [f"{key} {sizes[key]}" for key in ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "WINDOW_SIZE") if key in sizes]
        return f"{model['NAME']} ({', '.join([model['TYPE'], *known])})", "its --cfg"
    except (KeyError, TypeError, AttributeError, yaml.YAMLError):  # the file of another program
        return None
