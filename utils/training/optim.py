"""Optimizers and their parameter groups."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from timm.optim import Lamb, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.distributed.sharding import is_dtensor

Groups = list[dict[str, Any]]  # torch's format


@dataclass(frozen=True)
class OptimizerOptions:
    """`name` of the optimizer; `eps`, `betas` for AdamW and LAMB, `momentum` for SGD; `weight_decay` of matrices;
    `layer_decay`: learning-rate factor per layer below the head, 1 for none; `rule` for counting layers, see
    `parameter_groups`; `backbone`: learning-rate factor of everything but the head."""

    name: str = "adamw"
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    rule: str = "timm"
    backbone: float = 1.0

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
            rule=cfg.TRAIN.LAYER_DECAY_RULE,
            backbone=cfg.TRAIN.BACKBONE_LR,
        )


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float, rule: str = "timm") -> Groups:
    """Puts every trainable parameter into exactly one group with `weight_decay` and `lr_scale`.

    Weight decay applies to matrices only, except those named by the model's `no_weight_decay()`. With `layer_decay`
    below 1, layer n below the head learns at `layer_decay ** n` of the rate (arXiv 2106.08254). `rule` selects how
    layers are counted: by the model's `group_matcher()` ("timm") or, if it has one, its `simmim_group_matcher()`. A
    model with a method `decays(name)` decides by it which parameters decay.
    """
    groups = _layered(model, weight_decay, layer_decay, rule)
    decays: Any = getattr(model, "decays", None)
    if decays is None:
        return groups
    decayed = {id(parameter) for name, parameter in model.named_parameters() if decays(name)}
    return [{**group, "weight_decay": weight_decay if kind else 0.0} for kind, group in _divided(groups, decayed)]


def _layered(model: nn.Module, weight_decay: float, layer_decay: float, rule: str) -> Groups:
    tables: set[str] = getattr(model, "no_weight_decay", set)()
    if layer_decay < 1.0:
        matcher = getattr(model, "simmim_group_matcher", None) if rule == "simmim" else None
        layered: Any = model
        if matcher is not None:
            layered = SimpleNamespace(named_parameters=model.named_parameters, group_matcher=lambda coarse: matcher())
        return param_groups_layer_decay(layered, weight_decay, tables, layer_decay=layer_decay)
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tables)
    return [{**group, "lr_scale": 1.0} for group in groups if group["params"]]


def slow_backbone(groups: Groups, model: nn.Module, factor: float) -> Groups:
    """Returns the groups with `lr_scale` times `factor` for every parameter that is not of the classification head.

    Args: model: one with timm's `get_classifier()`; all parameters of any other belong to its backbone.
    """
    head: Any = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    own = {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()
    scaled = ((1.0 if of_head else factor, group) for of_head, group in _divided(groups, own))
    return [{**group, "lr_scale": group["lr_scale"] * scale} for scale, group in scaled]


def _divided(groups: Groups, chosen: set[int]) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Yields the chosen parameters of each group, as (True, group), then the others. Args: chosen: their ids."""
    for group in groups:
        for kind in (True, False):
            members = [parameter for parameter in group["params"] if (id(parameter) in chosen) == kind]
            if members:
                yield kind, {**group, "params": members}


def build_optimizer(groups: Groups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Builds an optimizer whose learning rate is set at every update. Raises: KeyError for an unknown name."""
    return OPTIMIZERS[options.name](groups, options)


def _adamw(groups: Groups, o: OptimizerOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=o.betas, eps=o.eps, fused=_can_fuse(groups))


def _sgd(groups: Groups, o: OptimizerOptions) -> torch.optim.Optimizer:
    sharded = any(is_dtensor(p) for group in groups for p in group["params"])  # torch fuses AdamW alone for these
    fused = None if sharded else _can_fuse(groups)
    sgd = torch.optim.SGD(groups, lr=0.0, momentum=o.momentum, nesterov=o.momentum > 0, fused=fused)
    for group in sgd.param_groups if o.momentum else ():
        for p in group["params"]:  # skipping the first fused step would leave them uninitialised
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def _fused_lamb(groups: Groups, o: OptimizerOptions) -> torch.optim.Optimizer:
    return Lamb(groups, lr=0.0, betas=o.betas, eps=o.eps)


def _can_fuse(groups: Groups) -> bool | None:
    """Returns True if one kernel can do the step: 34 ms for Swin-T on the CPU instead of 80 ms."""
    devices = {p.device.type for group in groups for p in group["params"]}
    return True if devices in ({"cpu"}, {"cuda"}) else None


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerOptions], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "fused_adam": _adamw,
    "fused_lamb": _fused_lamb,
}


def step_if_finite(optimizer: torch.optim.Optimizer, norm: Tensor, clip: float) -> None:
    """Takes a step with the gradient clipped to `clip` (0: unclipped); skips it if the gradient is non-finite.

    A fused optimizer clips and skips on the device; any other makes this function wait for `norm`.
    Args: norm: norm of the whole gradient, a scalar on the device.
    """
    if optimizer.defaults.get("fused"):
        # as set by GradScaler: the step divides by grad_scale, and is skipped if found_inf is 1
        optimizer.grad_scale = ((norm + 1e-6) / clip).clamp(min=1) if clip else None  # type: ignore[attr-defined]
        optimizer.found_inf = torch.isfinite(norm).logical_not().float()  # type: ignore[attr-defined]
        optimizer.step()
    elif torch.isfinite(norm):
        if clip:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: Callable[[float], float]) -> None:
    """Sets the learning rate of each group. Args: rate: maps the group's layer-decay scale to a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate(group["lr_scale"])


def describe_groups(groups: Iterable[dict[str, Any]], numel: Callable[[Tensor], int] = Tensor.numel) -> str:
    """Returns a log line: the number of decayed parameters. Args: numel: counts the elements of a whole parameter."""
    groups = list(groups)
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    kept = [p for g in groups if not g["weight_decay"] for p in g["params"]]
    sizes = [f"{sum(map(numel, ps)):,} parameters in {len(ps)} tensors" for ps in (decayed, kept)]
    decay = max((g["weight_decay"] for g in groups), default=0)
    return f"weight decay {decay:g} on {sizes[0]}, none on {sizes[1]}"
