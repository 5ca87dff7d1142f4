"""Loading of weights into timm models, under timm's names or any that timm can translate."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.weights.checks import WrongModelError, check_finite, check_kinds, check_names, check_shapes, misfits
from models.weights.fitting import Head
from utils.errors import listing

Weights = dict[str, Tensor]


def load_timm(model: nn.Module, place: str, tensors: Weights, origin: str, head: Head) -> str:
    """Copies weights into a timm model; only its classifier may be re-initialised, as `head` allows.

    Args: place: location of the weights in the file, for the log; tensors: {name without prefixes: tensor}.
    Returns: a log line. Raises: CheckpointError.
    """
    check_finite(tensors, origin)
    own = model.state_dict()
    classifier = _classifier(model)
    notes = [f"{len(tensors)} tensors from {origin} ({place})"]
    if set(tensors) != set(own) or set(misfits(tensors, own)) - set(classifier):
        tensors = _translated(model, tensors, origin)
        notes.append("translated and resized by timm")
    other = [name for name in classifier if name not in tensors or tensors[name].shape != own[name].shape]
    if head == "replace" or (head == "renew" and other):
        tensors = {**tensors, **{name: torch.zeros_like(own[name]) for name in classifier}}
        notes.append(f"{listing(classifier)} re-initialised to zero")
    check_names(tensors, own, origin)
    check_kinds(tensors, own, origin)
    if any(name.endswith(".logit_scale") for name in own):
        notes.append("position coordinates of the timm model: the file does not store its pre-training window size")
    check_shapes(tensors, own, misfits(tensors, own), origin)
    model.load_state_dict(tensors)
    return ", ".join(notes)


def _classifier(model: nn.Module) -> list[str]:
    """Returns the parameter names of the classifier."""
    last: Any = model.get_classifier()  # type: ignore[operator]
    parts = last if isinstance(last, tuple | list) else [last]
    prefixes = [f"{name}." for name, module in model.named_modules() if name and any(module is part for part in parts)]
    return [name for name in model.state_dict() if name.startswith(tuple(prefixes))] if prefixes else []


def _translated(model: nn.Module, tensors: Weights, origin: str) -> Weights:
    """Translates names and image size as timm does for the published weights of the architecture."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return tensors
    try:
        with torch.no_grad():
            translated: Mapping[str, Any] = translate(dict(tensors), model)
    except Exception as e:  # timm's converters raise anything
        raise WrongModelError(origin, f"timm cannot convert it ({type(e).__name__}: {e})") from e
    return {name: value for name, value in translated.items() if isinstance(value, Tensor)}
