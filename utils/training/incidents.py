"""Reports of updates without a finite gradient: what to look at, one file each, in incidents/ of the output folder."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.distributed import World
from utils.evaluation.metrics import finite
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


def write_incident(
    folder: Path,
    world: World,
    *,
    update: int,
    details: dict[str, Any],
    losses: dict[str, float],
    samples: Iterable[int],
    name_of: Callable[[int], str],
) -> None:
    """Writes incidents/update_N.json with the losses and sample names of every rank. All ranks call it.

    Args: details: of the update, the same on all ranks; losses and samples: of this rank.
    """
    own = {"losses": {name: finite(value) for name, value in losses.items()}, "samples": [name_of(i) for i in samples]}
    ranks = world.gather_objects(own)
    if not world.is_main:
        return
    try:
        folder.mkdir(exist_ok=True)
        if sum(1 for _ in folder.iterdir()) >= MOST:
            return
        report = {"update": update, **details, "ranks": ranks}
        write_text(folder / f"update_{update}.json", json.dumps(report, indent=2) + "\n")
    except OSError as e:
        log.warning("cannot write a report of update %d (%s): %s", update, e.strerror, folder)
