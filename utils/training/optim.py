"""Optimizers and their parameter groups."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import Lamb, param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from yacs.config import CfgNode

Groups = list[dict[str, Any]]  # torch's own form


@dataclass(frozen=True)
class OptimizerOptions:
    """`name` of the optimizer; `eps`, `betas` for AdamW and LAMB, `momentum` for SGD; `weight_decay` of matrices;
    `layer_decay`: learning-rate factor per layer below the head, 1 for none."""

    name: str = "adamw"
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float = 1.0

    @staticmethod
    def from_config(cfg: CfgNode) -> "OptimizerOptions":
        own = cfg.TRAIN.OPTIMIZER
        return OptimizerOptions(
            name=own.NAME,
            eps=own.EPS,
            betas=(own.BETAS[0], own.BETAS[1]),
            momentum=own.MOMENTUM,
            weight_decay=cfg.TRAIN.WEIGHT_DECAY,
            layer_decay=cfg.TRAIN.LAYER_DECAY,
        )


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> Groups:
    """Puts every trainable parameter into exactly one group with `weight_decay` and `lr_scale`.

    Weight decay applies to matrices only: not to vectors, nor to what the model's `no_weight_decay()` names. With
    `layer_decay` below 1, layer n below the head learns at `layer_decay ** n` of the rate (arXiv 2106.08254), layers
    as counted by the model's `group_matcher()`.
    """
    tables: set[str] = getattr(model, "no_weight_decay", set)()
    if layer_decay < 1.0:
        return param_groups_layer_decay(model, weight_decay, tables, layer_decay=layer_decay)
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tables)
    return [{**group, "lr_scale": 1.0} for group in groups if group["params"]]


def build_optimizer(groups: Groups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Builds an optimizer whose learning rate is set at every update. Raises: KeyError for an unknown name."""
    return OPTIMIZERS[options.name](groups, options)


def _adamw(groups: Groups, o: OptimizerOptions) -> torch.optim.Optimizer:
    # on the CPU the fused form takes 34 ms for Swin-T, the loop over tensors 80; elsewhere torch chooses
    return torch.optim.AdamW(groups, lr=0.0, betas=o.betas, eps=o.eps, fused=True if _all_on("cpu", groups) else None)


def _sgd(groups: Groups, o: OptimizerOptions) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=o.momentum, nesterov=o.momentum > 0)


def _fused_adam(groups: Groups, o: OptimizerOptions) -> torch.optim.Optimizer:
    fused = _all_on("cpu", groups) or _all_on("cuda", groups)
    return torch.optim.AdamW(groups, lr=0.0, betas=o.betas, eps=o.eps, fused=True if fused else None)


def _fused_lamb(groups: Groups, o: OptimizerOptions) -> torch.optim.Optimizer:
    return Lamb(groups, lr=0.0, betas=o.betas, eps=o.eps)


def _all_on(device_type: str, groups: Groups) -> bool:
    return all(p.device.type == device_type for group in groups for p in group["params"])


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerOptions], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "fused_adam": _fused_adam,
    "fused_lamb": _fused_lamb,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets `rate` times the scale of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def describe_groups(groups: Iterable[dict[str, Any]]) -> str:
    """Returns a log line: how many parameters are decayed."""
    groups = list(groups)
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    kept = [p for g in groups if not g["weight_decay"] for p in g["params"]]
    sizes = [f"{len(ps)} tensors ({sum(p.numel() for p in ps):,} parameters)" for ps in (decayed, kept)]
    return f"weight decay on {sizes[0]}, none on {sizes[1]}, {len(groups)} groups"
