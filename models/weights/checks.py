"""What is refused in weights before a model takes them."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from models.errors import WeightsError


def check_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises: WeightsError with the first tensor that holds NaN, Inf or complex numbers."""
    for name, value in tensors.items():
        if value.is_complex():
            raise WeightsError(f"a weight is complex: {name} of {origin}: no model of this program has such")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(
                f"a weight is not finite: {name} of {origin}: the file is damaged or its training failed"
            )


def check_names(given: Iterable[str], wanted: Iterable[str], origin: str) -> None:
    """Raises: WeightsError with the first names of `wanted` that are missing, and of `given` that are not wanted."""
    known, needed = dict.fromkeys(given), dict.fromkeys(wanted)
    missing, unexpected = [n for n in needed if n not in known], [n for n in known if n not in needed]
    parts = [f"{len(n)} {what}: {some(n)}" for what, n in (("missing", missing), ("unexpected", unexpected)) if n]
    if parts:
        raise WeightsError(not_of_this_model(origin, "; ".join(parts)))


def check_kinds(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str) -> None:
    """Raises: WeightsError where whole numbers stand for weights."""
    for name, value in wanted.items():
        if value.is_floating_point() and name in given and not given[name].is_floating_point():
            kind = str(given[name].dtype).removeprefix("torch.")
            raise WeightsError(f"a weight of whole numbers ({kind}): {name} of {origin}: save it as floating point")


def misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors have another shape."""
    return [name for name, value in wanted.items() if name in given and given[name].shape != value.shape]


def not_of_this_model(origin: str, reason: str) -> str:
    """The text of a WeightsError for weights that no fitting brings together with the model."""
    return f"the weights are not of this model: {origin}: {reason}: use the --cfg they were made with"


def some(names: Iterable[str], count: int = 10) -> str:
    """The first names of a list that may be long."""
    known = list(names)
    return ", ".join(known[:count]) + (", ..." if len(known) > count else "")
