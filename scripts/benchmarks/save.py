"""How long training waits for a checkpoint, and how long the write takes in the background."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from configs.loading import load_config
from models.registry import model_options, new_model
from utils.checkpoints.files import checkpoint_name
from utils.distributed.world import World
from utils.precision import Precision
from utils.runs.saver import Saver
from utils.training.state import StateOptions, TrainState

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "swin_base.yaml"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `save`: seconds that training waits for a checkpoint, and until it is on disk."""
    cfg = load_config(options.cfg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(cfg, model_options(cfg), 1000, device)
    state = TrainState.build(model, StateOptions.from_config(cfg), Precision(device.type, torch.float32), World())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    state.optimizer.step()
    pauses, totals = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        saver = Saver(Path(folder), keep=1)
        for number in range(options.rounds + 1):  # the first one warms up
            begun = time.perf_counter()
            saver.save(checkpoint_name(number), state.state_dict())
            pauses.append(time.perf_counter() - begun)
            saver.finish()
            totals.append(time.perf_counter() - begun)
        size = next(Path(folder).glob("ckpt*.pth")).stat().st_size
    figures = {
        name: {"median": statistics.median(values[1:]), "least": min(values[1:]), "most": max(values[1:])}
        for name, values in (("training waits, s", pauses), ("until it is on disk, s", totals))
    }
    per_100 = figures["training waits, s"]["median"] / (size / 1e8)
    setting = f"{options.cfg.stem} with AdamW, {size / 1e6:,.0f} MB, {device}, n = {options.rounds}"
    lines = [
        f"{name}: {', '.join(f'{kind} {value:.2f}' for kind, value in each.items())}" for name, each in figures.items()
    ]
    tables = {"pause for a checkpoint": "\n".join(lines)}
    return {"setting": f"{setting}: {per_100:.3f} s per 100 MB", "tables": tables, "rows": figures}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", type=Path, default=RECIPE, help="default %(default)s")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure (default: this one)")
    parser.add_argument("--rounds", type=int, default=7, help="checkpoints that count (default %(default)s)")
