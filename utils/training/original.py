"""Training checkpoints of the original repository, translated so that its runs can be resumed here.

They hold model, optimizer, lr_scheduler, max_accuracy, scaler, epoch (the one just finished) and config. The optimizer
numbers its tensors in two groups, first those that are decayed, each in the order of the model's parameters.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import CheckpointError
from utils.training.plan import RunPlan
from utils.training.state import TrainState

_NAME = re.compile(r"ckpt_epoch_(\d+)\.pth")
_NO_DECAY = ("relative_position_bias_table", "cpb_mlp", "logit_scale", "absolute_pos_embed")


def is_original(contents: Mapping[str, Any]) -> bool:
    """Returns whether a file is a training checkpoint of the original."""
    return {"model", "optimizer", "lr_scheduler", "epoch"} <= contents.keys() and "counters" not in contents


def newest_original(folder: Path) -> Path | None:
    """Returns the newest checkpoint that the original wrote into an output folder (it has no subfolder for them)."""
    found = {int(m[1]): path for path in folder.glob("ckpt_epoch_*.pth") if (m := _NAME.fullmatch(path.name))}
    return found[max(found)] if found else None


def translate(contents: Mapping[str, Any], state: TrainState, plan: RunPlan, origin: Path) -> dict[str, Any]:
    """Returns the contents in the form of `TrainState.state_dict`.

    Raises: CheckpointError if its optimizer does not fit the model.
    """
    epoch = int(contents["epoch"]) + 1
    return {
        "model": contents["model"],
        "optimizer": {**state.optimizer.state_dict(), "state": _moments(contents, state, origin)},
        "optimizer_name": type(state.optimizer).__name__,
        "scaler": contents.get("scaler") if state.scaler.is_enabled() else None,
        "counters": {
            "epoch": epoch,
            "step": 0,
            "update": epoch * plan.updates_per_epoch,
            "skipped": 0,
            "skipped_in_row": 0,
            "samples": epoch * plan.shape.samples,
        },
        "best": {"value": None, "epoch": -1},
        "means": {name: [0.0, 0.0] for name in state.means},
    }


def _moments(contents: Mapping[str, Any], state: TrainState, origin: Path) -> dict[int, Any]:
    """Returns the optimizer's tensors under the indices of this run's optimizer."""
    own = {name: p for name, p in state.model.named_parameters() if p.requires_grad}
    order = [name.removeprefix("module.") for name in contents["model"]]
    order = [name for name in order if name in own]  # without buffers
    decayed = [name for name in order if _is_decayed(name, own[name])]
    order = decayed + [name for name in order if not _is_decayed(name, own[name])]
    sizes = [len(group["params"]) for group in contents["optimizer"]["param_groups"]]
    if sizes != [len(decayed), len(order) - len(decayed)]:
        raise CheckpointError(
            f"its optimizer has groups of {sizes} tensors, not {[len(decayed), len(order) - len(decayed)]}: {origin}:"
            " pass it to --pretrained, with another --tag, to start from its weights"
        )
    names = {id(p): name for name, p in own.items()}
    saved = contents["optimizer"]["state"]
    moments = {}
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        name = names[id(parameter)]
        values = saved.get(order.index(name), {})
        if name.startswith("head."):  # as the head itself: the original always has 1000 outputs
            values = {kind: _first_rows(value, parameter) for kind, value in values.items()}
        for kind, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise CheckpointError(
                    f"its optimizer does not fit the model ({kind} of {name} has shape {tuple(value.shape)}): {origin}:"
                    " pass it to --pretrained, with another --tag, to start from its weights"
                )
        if values:
            moments[index] = {k: v if isinstance(v, Tensor) else torch.tensor(float(v)) for k, v in values.items()}
    return moments


def _first_rows(value: Any, parameter: Tensor) -> Any:
    """Returns the rows of a moment that belong to the first classes, which are the data's."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape[1:] != parameter.shape[1:]:
        return value
    return value[: len(parameter)]


def _is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and not name.endswith(".bias") and not any(word in name for word in _NO_DECAY)
