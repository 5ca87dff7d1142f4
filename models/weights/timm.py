"""Weights for a model of timm that is no Swin of ours, by timm's names or those that timm translates."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import WeightsError
from models.weights.checks import check_finite, check_kinds, check_names, misfits, not_of_this_model, some
from models.weights.fitting import Head

Weights = dict[str, Tensor]


def load_timm(model: nn.Module, place: str, tensors: Weights, origin: str, head: Head) -> str:
    """Copy weights into a model of timm; its classifier may stay fresh as `head` says, nothing else may.

    Args: place: of the weights in the file, for the log; tensors: by name, without prefixes.
    Returns: a line that says what was loaded. Raises: WeightsError.
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
        tensors = {**tensors, **{name: own[name] for name in classifier}}
        notes.append(f"fresh {some(classifier)}")
    check_names(tensors, own, origin)
    check_kinds(tensors, own, origin)
    if any(name.endswith(".logit_scale") for name in own):
        notes.append("position coordinates as timm's model has them: the file does not tell its window of pre-training")
    wrong = [f"{n} {tuple(tensors[n].shape)} for {tuple(own[n].shape)}" for n in misfits(tensors, own)]
    if wrong:
        raise WeightsError(not_of_this_model(origin, f"{len(wrong)} of another shape: {some(wrong)}"))
    model.load_state_dict(tensors)
    return ", ".join(notes)


def _classifier(model: nn.Module) -> list[str]:
    """Names of the weights of the last layer, or layers."""
    last: Any = model.get_classifier()  # type: ignore[operator]
    parts = last if isinstance(last, tuple | list) else [last]
    prefixes = [f"{name}." for name, module in model.named_modules() if name and any(module is part for part in parts)]
    return [name for name in model.state_dict() if name.startswith(tuple(prefixes))] if prefixes else []


def _translated(model: nn.Module, tensors: Weights, origin: str) -> Weights:
    """As timm reads the published file of this architecture: other names, another image size."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return tensors
    try:
        with torch.no_grad():
            translated: Mapping[str, Any] = translate(dict(tensors), model)
    except Exception as e:  # timm's readers of foreign files end in any kind of error
        raise WeightsError(not_of_this_model(origin, f"timm cannot read it ({type(e).__name__}: {e})")) from e
    return {name: value for name, value in translated.items() if isinstance(value, Tensor)}
