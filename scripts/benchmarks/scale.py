"""The time of an evaluation per pixel, at image sizes from 224 to 1024."""

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

from scripts.benchmarks.contender import OURS, Contender, Setting

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `scale`: the sizes in turn, about as many pixels in every batch."""
    recipe, largest = CONFIGS / f"{options.model}.yaml", max(options.sizes)
    settings = {size: Setting(recipe, (largest // size) ** 2, size, options.threads) for size in options.sizes}
    contenders = {size: Contender(OURS, setting) for size, setting in settings.items()}
    times: dict[int, list[float]] = {size: [] for size in options.sizes}
    try:
        for number in range(-2, options.rounds):
            for size, contender in contenders.items():
                microseconds = 1e6 / contender.ask("evaluate") / (size * size / 1000)
                if number >= 0:
                    times[size].append(microseconds)
    finally:
        for contender in contenders.values():
            contender.close()
    medians = {size: statistics.median(values) for size, values in times.items()}
    lines = [
        "| image | batch | us per 1,000 pixels, median | least to most | to the smallest |",
        "|---|---|---|---|---|",
    ]
    for size, values in times.items():
        spread = f"{min(values):.1f} to {max(values):.1f}"
        ratio = medians[size] / medians[min(options.sizes)]
        lines.append(f"| {size} | {settings[size].batch} | {medians[size]:.1f} | {spread} | {ratio:.2f} |")
    setting = f"{options.model}, evaluation, float32, {options.threads} threads, n = {options.rounds}"
    return {"setting": setting, "tables": {"evaluation by image size": "\n".join(lines)}, "rows": times}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="swin_tiny", metavar="NAME", help="file of configs/ (default: swin_tiny)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448, 672, 896, 1024], help="default %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default %(default)s)")
