"""A run in two parts, for the tests of several tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def same_bits_in_two_parts(run: Callable[..., Any], runs: Path, last_epoch: int) -> bool:
    """Repeats the run "whole" as "parts", with loader workers; removes the checkpoints of the last epoch, and goes on.

    Args: run: starts the program with further arguments; runs: folder of the runs.
    Returns: whether the weights are equal in the end, bit for bit.
    """
    run("--tag", "parts", "--opts", "DATA.NUM_WORKERS", 1, "TRAIN.SAVE_EVERY_UPDATES", 1)
    checkpoints = runs / "parts/checkpoints"
    removed = [*checkpoints.glob(f"ckpt_epoch_{last_epoch}*.pth"), checkpoints / "last.pth", checkpoints / "best.pth"]
    for path in removed:
        path.unlink(missing_ok=True)
    run("--tag", "parts")
    whole, parts = (
        torch.load(runs / tag / "checkpoints/last.pth", weights_only=True)["model"] for tag in ("whole", "parts")
    )
    return whole.keys() == parts.keys() and all(torch.equal(value, parts[name]) for name, value in whole.items())
