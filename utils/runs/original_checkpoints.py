"""Converts training checkpoints of the original repository, so that its runs can be resumed here.

The files contain model, optimizer, lr_scheduler, max_accuracy, scaler, epoch (the one just finished) and config. The
optimizer numbers its tensors by group, in the order of the model's parameters: first the decayed ones, then the others;
with layer-wise decay, one group per layer and kind, in order of occurrence.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.optim import Lamb
from torch import Tensor, nn

from utils.errors import CheckpointError
from utils.training.optim import parameter_groups
from utils.training.plan import RunPlan
from utils.training.state import TrainState

_NAME = re.compile(r"ckpt_epoch_(\d+)\.pth")
# substrings of names; in pre-training the original prepends "encoder.", which matches only the last two
_NO_DECAY = ("relative_position_bias_table", "cpb_mlp", "logit_scale", "absolute_pos_embed", "mask_token")
_WEIGHTS_ONLY = "pass it to --pretrained, with a different --tag, to start from its weights"


def is_original(contents: Mapping[str, Any]) -> bool:
    """Returns whether a file is a training checkpoint of the original repository."""
    return {"model", "optimizer", "lr_scheduler", "epoch"} <= contents.keys() and "counters" not in contents


def newest_original(folder: Path) -> Path | None:
    """Returns the newest checkpoint of the original repository in an output folder (it uses no subfolder)."""
    found = {int(m[1]): path for path in folder.glob("ckpt_epoch_*.pth") if (m := _NAME.fullmatch(path.name))}
    return found[max(found)] if found else None


def translate(contents: Mapping[str, Any], state: TrainState, plan: RunPlan, origin: Path) -> dict[str, Any]:
    """Converts the contents to the format of `TrainState.state_dict`.

    Raises: CheckpointError if the optimizer does not match the model.
    """
    epoch = int(contents["epoch"]) + 1
    return {
        "model": contents["model"],
        "optimizer": {"state": _moments(contents, state, origin), "param_groups": _groups(contents, state)},
        "optimizer_name": type(state.optimizer).__name__,
        "scaler": contents.get("scaler") if state.scaler.is_enabled() else None,
        "counters": {
            "epoch": epoch,
            "step": 0,
            "update": epoch * plan.updates_per_epoch,
            "skipped": 0,
            "skipped_in_row": 0,
            "samples": epoch * plan.shape.samples,
            "evaluated_at": epoch * plan.updates_per_epoch,
        },
        "best": {"value": None, "epoch": -1},
        "means": {name: [0.0, 0.0] for name in state.means},
    }


def _moments(contents: Mapping[str, Any], state: TrainState, origin: Path) -> dict[int, Any]:
    """Maps the optimizer's tensors to the indices of this run's optimizer."""
    own = {name: p for name, p in state.model.named_parameters() if p.requires_grad}
    order = [name.removeprefix("module.") for name in contents["model"]]
    order = [name for name in order if name in own]  # without buffers
    sizes = [len(group["params"]) for group in contents["optimizer"]["param_groups"]]
    groups = _layered(order, own, state.model) if len(sizes) > 2 else _by_decay(order, own)
    if sizes != list(map(len, groups)):
        problem = f"the optimizer has groups of {sizes} tensors, not {list(map(len, groups))}"
        raise CheckpointError(str(origin), problem, _WEIGHTS_ONLY)
    order = [name for group in groups for name in group]
    names = {id(p): name for name, p in own.items()}
    saved, step = contents["optimizer"]["state"], _step(contents)
    _check_kind(saved, state, origin)
    moments = {}
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        name = names[id(parameter)]
        values = saved.get(order.index(name), {})
        if values and step is not None and not isinstance(state.optimizer, Lamb):
            values = {"step": step, **values}
        if name.startswith("head."):  # like the head: the original repository always has 1000 outputs
            values = {kind: _first_rows(value, parameter) for kind, value in values.items()}
        for kind, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                shape = f"{kind} of {name} has shape {tuple(value.shape)}"
                raise CheckpointError(str(origin), f"the optimizer does not match the model: {shape}", _WEIGHTS_ONLY)
        if values:
            moments[index] = {k: v if isinstance(v, Tensor) else torch.tensor(float(v)) for k, v in values.items()}
    return moments


def _first_rows(value: Any, parameter: Tensor) -> Any:
    """Truncates a moment to the classes of the data, which come first."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape[1:] != parameter.shape[1:]:
        return value
    return value[: len(parameter)]


def _by_decay(order: Sequence[str], own: Mapping[str, Tensor]) -> list[list[str]]:
    prefix = "encoder." if any(name.startswith("encoder.") for name in order) else ""
    decayed = [name for name in order if _is_decayed(name, own[name], prefix)]
    chosen = set(decayed)
    return [decayed, [name for name in order if name not in chosen]]


def _is_decayed(name: str, parameter: Tensor, prefix: str) -> bool:
    return parameter.ndim > 1 and not name.endswith(".bias") and not any(prefix + word in name for word in _NO_DECAY)


def _layered(order: Sequence[str], own: Mapping[str, Tensor], model: nn.Module) -> list[list[str]]:
    """Groups parameters as layer-wise decay does, whatever the run's setting; the factor identifies a layer."""
    layered = parameter_groups(model, weight_decay=1.0, layer_decay=0.5, rule="simmim")
    factors = {id(p): group["lr_scale"] for group in layered for p in group["params"]}
    groups = defaultdict(list)
    for name in order:
        groups[factors[id(own[name])], _is_decayed(name, own[name], "")].append(name)
    return list(groups.values())


def _step(contents: Mapping[str, Any]) -> int | None:
    """Returns the step counter of apex's optimizers; None for torch's, which count per tensor."""
    return next((group["step"] for group in contents["optimizer"]["param_groups"] if "step" in group), None)


def _groups(contents: Mapping[str, Any], state: TrainState) -> list[dict[str, Any]]:
    """Returns this run's groups, which hold the step counter of LAMB."""
    groups, step = state.optimizer.state_dict()["param_groups"], _step(contents)
    if step is None or not isinstance(state.optimizer, Lamb):
        return groups
    return [{**group, "step": step} for group in groups]


def _check_kind(saved: Mapping[int, Any], state: TrainState, origin: Path) -> None:
    """Raises: CheckpointError if the moments belong to a different kind of optimizer."""
    kinds: set[str] = set().union(*saved.values())
    theirs = "SGD" if "momentum_buffer" in kinds else "Adam"
    expected = "SGD" if isinstance(state.optimizer, torch.optim.SGD) else "Adam"
    if kinds and theirs != expected:
        name = {"SGD": "sgd", "Adam": "adamw"}[theirs]
        problem = f"the checkpoint's optimizer is {theirs}, this run's is {type(state.optimizer).__name__}"
        raise CheckpointError(str(origin), problem, f"set TRAIN.OPTIMIZER.NAME to {name}")
