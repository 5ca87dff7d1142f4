"""Fits weights to a model of a different size: windows, image sizes, input channels, classes."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone import resize_position_embedding
from models.weights.class_maps import CLASSES_1K, CLASSES_22K, map_head
from utils.errors import CheckpointError, count
from utils.preprocessing import Size

Weights = dict[str, Tensor]
# the file's head must fit; or is re-initialised if it does not fit; or is always re-initialised
Head = Literal["fit", "renew", "replace"]
# resampling of position tables to a different window size
Tables = Literal["bicubic", "geometric"]


def fit_weights(weights: Weights, own: Mapping[str, Tensor], grid: Size, tables: Tables = "bicubic") -> list[str]:
    """Resizes in place the weights that depend on the window, the image size or the number of input channels.

    Args: weights under the original's names; own: the state dict to fit; grid: tokens of the model's absolute position
    embedding; tables: resampling of position tables.
    Returns: messages for the log.
    """
    done, resized = [], 0
    resize = resize_bias_table if tables == "bicubic" else resize_geometrically
    for name, value in list(weights.items()):
        target = own.get(name)
        if target is None or target.shape == value.shape or value.ndim != target.ndim:
            continue
        if name.endswith("relative_position_bias_table") and value.shape[1] == target.shape[1] and _is_square(value):
            weights[name] = resize(value, len(target))
            resized += 1
        elif name == "absolute_pos_embed" and value.shape[2] == target.shape[2] and _is_square(value[0]):
            side = round(value.shape[1] ** 0.5)
            weights[name] = resize_position_embedding(value, (side, side), grid).flatten(1, 2)
            done.append("absolute position embedding resized")
        elif name == "patch_embed.proj.weight" and value.shape[2:] == target.shape[2:]:
            weights[name] = adapt_input_channels(value, target.shape[1])
            done.append(f"filters for {value.shape[1]} input channels adapted to {target.shape[1]}")
    how = "resized" if tables == "bicubic" else "resized geometrically"
    return [*([f"{count(resized, 'position table')} {how}"] if resized else []), *done]


def _is_square(rows: Tensor) -> bool:
    return len(rows) > 0 and round(len(rows) ** 0.5) ** 2 == len(rows)


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Resizes a position table to a different window size: (S * S, heads) -> (rows, heads).

    Bicubic over the grid of offsets, as in the released recipes.
    """
    side, target = round(len(table) ** 0.5), round(rows**0.5)
    grid = table.T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, (target, target), mode="bicubic", align_corners=False)
    return grid.reshape(-1, rows).T.contiguous()


def resize_geometrically(table: Tensor, rows: int) -> Tensor:
    """Resizes a position table to a different window size: (S * S, heads) -> (rows, heads), as SimMIM does.

    The offsets of the table are placed at 0, 1, 1 + q, 1 + q + q^2, ... and their negatives, with q such that the last
    one matches the target; a bicubic spline through them is sampled at integer offsets. Small offsets, where values
    differ most, thus keep theirs.
    """
    from scipy.interpolate import RectBivariateSpline  # slow to import

    side, target = round(len(table) ** 0.5), round(rows**0.5)
    half = geometric_offsets(side // 2, target // 2)
    knots, wanted = np.concatenate([-half[::-1], [0], half]), np.arange(target) - target // 2
    grids = table.double().T.reshape(-1, side, side).cpu().numpy()
    order = min(3, side - 1)
    resized = [RectBivariateSpline(knots, knots, grid, kx=order, ky=order)(wanted, wanted) for grid in grids]
    return torch.from_numpy(np.stack(resized)).reshape(-1, rows).T.to(table.dtype).contiguous()


def geometric_offsets(count: int, last: int) -> np.ndarray:
    """Returns `count` numbers 1, 1 + q, 1 + q + q^2, ..., with q in [1.01, 1.5] such that the last one is `last`."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**count) / (1 - q) > last else (q, high)
    return np.cumsum(q ** np.arange(count))


def adapt_input_channels(filters: Tensor, channels: int) -> Tensor:
    """Adapts filters (dim, c, p, p) to a different number of input channels, preserving the scale of their response.

    One channel: the sum over c, exact for greyscale images. More: the filters repeated, scaled by c / channels.
    """
    own = filters.shape[1]
    if channels == 1:
        return filters.sum(1, keepdim=True)
    repeated = filters.repeat(1, -(-channels // own), 1, 1)[:, :channels]
    return repeated * (own / channels)


def fit_head(weights: Weights, own: Mapping[str, Tensor], head: Head, origin: str) -> str:
    """Fits a head with a different number of classes, or a missing one; returns a message for the log.

    From 22K to 1K the rows of the 1K classes are selected. Unless `head` is "fit", a head that does not fit is
    re-initialised to zero, as in the original. For fewer classes, "fit" uses the first rows of a 1000-class head: the
    original always builds 1000 outputs, and custom data use the first ones.

    Raises: CheckpointError if the head must fit and does not.
    """
    names = ("head.weight", "head.bias")
    if "head.weight" not in own:  # the model has no head
        dropped = [weights.pop(name, None) for name in names]
        return "head dropped" if dropped[0] is not None else ""
    classes = len(own["head.weight"])
    for name in (name for name in names if name in weights and weights[name].ndim != own[name].ndim):
        raise CheckpointError(origin, f"{name} cannot have shape {tuple(weights[name].shape)}", "name another file")
    rows = len(weights["head.weight"]) if "head.weight" in weights else 0
    if head != "replace":
        if rows == classes:
            return ""
        if rows == CLASSES_22K and classes == CLASSES_1K:
            weights |= {name: map_head(weights[name]) for name in names}
            return "head mapped from 22K to 1K classes"
    if head != "fit" and not rows:
        weights |= {name: own[name].clone() for name in names}
        return f"head initialised at random for {classes} classes (the file has none)"
    if head != "fit":
        reason = "other classes" if head == "replace" else f"{rows} classes"
        weights |= {name: torch.zeros_like(own[name]) for name in names}
        return f"head re-initialised to zero for {classes} classes (the file has {reason})"
    if not rows:
        raise CheckpointError(origin, "has no head, so it cannot classify", "fine-tune it with --pretrained")
    if rows == CLASSES_1K and classes < rows:
        weights |= {name: weights[name][:classes] for name in names}
        return f"the first {classes} of {rows} outputs, in the label order of the folders, as the original trains them"
    remedy = "fine-tune it with --pretrained and a different --tag"
    if rows > classes:
        remedy += f", or set MODEL.NUM_CLASSES {rows} if the data are its first classes"
    raise CheckpointError(origin, f"the head has {rows} classes, the data {classes}", remedy)
