"""Weights of one size made to fit a model of another: windows, image sizes, input channels, classes."""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from models.backbone import resize_position_embedding
from models.errors import WeightsError
from models.weights.class_maps import CLASSES_1K, CLASSES_22K, map_head

Weights = dict[str, Tensor]
# the file's head must fit; or a fresh one stays where it does not fit; or the fresh one stays
Head = Literal["fit", "renew", "replace"]


def fit_weights(weights: Weights, own: Mapping[str, Tensor]) -> list[str]:
    """Resize in place what another window, image size or number of input channels changes.

    Args: weights under the original's names; own: the state dict they are to fit.
    Returns: what was done, for the log.
    """
    done = []
    for name, value in list(weights.items()):
        target = own.get(name)
        if target is None or target.shape == value.shape:
            continue
        if value.ndim != target.ndim:
            continue
        if name.endswith("relative_position_bias_table") and value.shape[1] == target.shape[1] and _is_square(value):
            weights[name] = resize_bias_table(value, len(target))
            done.append("position tables resized")
        elif name == "absolute_pos_embed" and value.shape[2] == target.shape[2] and _is_square(value[0]):
            side = round(target.shape[1] ** 0.5)
            weights[name] = resize_position_embedding(value, side, side).flatten(1, 2)
            done.append("absolute position embedding resized")
        elif name == "patch_embed.proj.weight" and value.shape[2:] == target.shape[2:]:
            weights[name] = adapt_input_channels(value, target.shape[1])
            done.append(f"filters of {value.shape[1]} input channels made {target.shape[1]}")
    return list(dict.fromkeys(done))


def _is_square(rows: Tensor) -> bool:
    return len(rows) > 0 and round(len(rows) ** 0.5) ** 2 == len(rows)


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """A position table for another window: (S * S, heads) -> (rows, heads).

    Bicubic over the grid of offsets, as the released recipes for another window do.
    """
    side, target = round(len(table) ** 0.5), round(rows**0.5)
    grid = table.T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, (target, target), mode="bicubic", align_corners=False)
    return grid.reshape(-1, rows).T.contiguous()


def adapt_input_channels(filters: Tensor, channels: int) -> Tensor:
    """Filters (dim, c, p, p) for another number of input channels, keeping the size of their response.

    One channel: the sum over c, right for grey images. More: the filters repeated, scaled by c / channels.
    """
    own = filters.shape[1]
    if channels == 1:
        return filters.sum(1, keepdim=True)
    repeated = filters.repeat(1, -(-channels // own), 1, 1)[:, :channels]
    return repeated * (own / channels)


def fit_head(weights: Weights, own: Mapping[str, Tensor], head: Head, origin: str) -> str:
    """Treat a head with another number of classes, or a missing one; returns what was done, for the log.

    From 22K to 1K the rows of the 1K classes are picked. Else the model's fresh head stays, where `head` allows it.
    Raises: WeightsError where it does not.
    """
    names = ("head.weight", "head.bias")
    if "head.weight" not in own:  # the model has no head
        dropped = [weights.pop(name, None) for name in names]
        return "head left out" if dropped[0] is not None else ""
    classes = len(own["head.weight"])
    for name in (name for name in names if name in weights and weights[name].ndim != own[name].ndim):
        raise WeightsError(f"no head: {name} has the shape {tuple(weights[name].shape)}: {origin}: name another file")
    rows = len(weights["head.weight"]) if "head.weight" in weights else 0
    if head != "replace":
        if rows == classes:
            return ""
        if rows == CLASSES_22K and classes == CLASSES_1K:
            weights |= {name: map_head(weights[name]) for name in names}
            return "head mapped from 22K to 1K classes"
    if head != "fit":
        reason = "other classes" if head == "replace" and rows else rows or "none"
        weights |= {name: own[name] for name in names}
        return f"a fresh head for {classes} classes (the file has {reason})"
    if not rows:
        raise WeightsError(f"the file holds no head, it classifies nothing: {origin}: fine-tune it with --pretrained")
    raise WeightsError(
        f"the head has {rows} classes, not {classes}: {origin}: use the data of its classes, or fine-tune"
    )
