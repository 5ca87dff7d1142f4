"""Optimizers and their parameter groups."""

from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

OPTIMIZERS = ("adamw", "sgd")


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group, with `weight_decay` and `lr_scale`.

    Weight decay acts on matrices only: not on vectors, and not on what the model's `no_weight_decay()` names. With
    `layer_decay` below 1 a layer n below the head learns at `layer_decay ** n` of the rate (arXiv 2106.08254), layers
    as the model's `group_matcher()` counts them.
    """
    tables: set[str] = getattr(model, "no_weight_decay", set)()
    if layer_decay < 1.0:
        return param_groups_layer_decay(model, weight_decay, tables, layer_decay=layer_decay)
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tables)
    return [{**group, "lr_scale": 1.0} for group in groups if group["params"]]


def build_optimizer(
    groups: list[dict[str, Any]], *, name: str, eps: float, betas: list[float], momentum: float
) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum; the learning rate is set at every update."""
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(betas[0], betas[1]), eps=eps)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0)
    raise ValueError(f"no optimizer is called {name!r}: choose one of {', '.join(OPTIMIZERS)}")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """`rate` times the scale of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def describe_groups(groups: list[dict[str, Any]]) -> str:
    """How many parameters are decayed: a line for the log."""
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    kept = [p for g in groups if not g["weight_decay"] for p in g["params"]]
    sizes = [f"{len(ps)} tensors ({sum(p.numel() for p in ps):,} parameters)" for ps in (decayed, kept)]
    return f"weight decay on {sizes[0]}, none on {sizes[1]}, {len(groups)} groups"
