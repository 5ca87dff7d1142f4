"""Reports of updates without a finite gradient: what to look at, one file each, in incidents/ of the output folder."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.distributed import World
from utils.files import write_text

log = logging.getLogger(__name__)
MOST = 100  # reports of a run; float16 skips some updates by design


def stage_norms(model: nn.Module) -> dict[str, float]:
    """Returns the gradient norm of every part of the model: patch_embed, layers.0, ..., head."""
    squares: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parts = name.split(".")
            stage = ".".join(parts[: 2 if len(parts) > 2 and parts[1].isdigit() else 1])
            square = parameter.grad.detach().float().square().sum()
            squares[stage] = squares[stage] + square if stage in squares else square
    return {stage: float(torch.sqrt(square)) for stage, square in squares.items()}


def write_incident(path: Path, world: World, details: dict[str, Any], own: dict[str, Any]) -> None:
    """Writes a report of `details` and of what every rank adds; a failure is a warning. All ranks call it.

    Args: details: of the update, the same on all ranks; own: of this rank.
    """
    ranks = world.gather_objects(own)
    if not world.is_main:
        return
    try:
        path.parent.mkdir(exist_ok=True)
        if sum(1 for _ in path.parent.iterdir()) < MOST:
            write_text(path, json.dumps({**details, "ranks": ranks}, indent=2) + "\n")
    except OSError as e:
        log.warning("cannot write a report (%s): %s", e.strerror, path)
