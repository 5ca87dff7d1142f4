"""Checks on weights before they are loaded into a model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from utils.checkpoints.released import released_models
from utils.errors import CheckpointError, listing


class WrongModelError(CheckpointError):
    """The weights do not fit the model."""

    def __init__(self, origin: str, problem: str, remedy: str = "use the --cfg it was trained with"):
        super().__init__(origin, problem, remedy)


def check_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Checks all tensors. Raises: CheckpointError with the first one that is complex or contains NaN or Inf."""
    for name, value in tensors.items():
        if value.is_complex():
            raise CheckpointError(origin, f"{name} is complex, but no model has complex weights", "name another file")
        if value.is_floating_point() and not bool(_comparable(value).isfinite().all()):
            problem = f"{name} is not finite: the file is corrupt or its training diverged"
            raise CheckpointError(origin, problem, "name another file")


def _comparable(value: Tensor) -> Tensor:
    """Converts one-byte types: torch does not implement `isfinite` for them."""
    return value.float() if value.dtype.itemsize == 1 else value


def check_names(given: Iterable[str], wanted: Iterable[str], origin: str) -> None:
    """Compares names. Raises: WrongModelError with the first missing and unexpected ones."""
    known, needed = dict.fromkeys(given), dict.fromkeys(wanted)
    missing, unexpected = [n for n in needed if n not in known], [n for n in known if n not in needed]
    both = ("missing", missing), ("unexpected", unexpected)
    parts = [f"{len(names)} {kind}: {listing(names, 10)}" for kind, names in both if names]
    if parts:
        raise WrongModelError(origin, f"parameters do not match the model, {'; '.join(parts)}")


def check_kinds(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str) -> None:
    """Checks dtypes. Raises: CheckpointError for an integer where the model has a floating-point weight."""
    for name, value in wanted.items():
        if value.is_floating_point() and name in given and not given[name].is_floating_point():
            kind = str(given[name].dtype).removeprefix("torch.")
            raise CheckpointError(origin, f"{name} is an integer ({kind})", "save it as floating point")


def misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of tensors that differ in shape."""
    return [name for name, value in wanted.items() if name in given and given[name].shape != value.shape]


def check_shapes(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: list[str], origin: str) -> None:
    """Checks that no tensor has the wrong shape, given the names of those that do. Raises: WrongModelError."""
    if names:
        shapes = [f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}" for name in names]
        raise WrongModelError(
            origin, f"does not fit the model, {len(names)} of a different shape: {listing(shapes, 10)}"
        )


def trained_as(contents: Mapping[str, Any], origin: str) -> tuple[str, str] | None:
    """Returns the model whose weights a file holds and its recipe, from the published name or stored configuration."""
    name = Path(origin).stem
    for row in released_models():
        if name in (row["config"], Path(row.get("weights_url") or "").stem):
            return name, f"--cfg {row['config']}"
    try:
        model = yaml.safe_load(contents["config"])["MODEL"]
        sizes = model.get(model["TYPE"].upper(), {})
        known = [f"{key} {sizes[key]}" for key in ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "WINDOW_SIZE") if key in sizes]
        return f"{model['NAME']} ({', '.join([model['TYPE'], *known])})", "its --cfg"
    except (KeyError, TypeError, AttributeError, yaml.YAMLError):  # written by another program
        return None
