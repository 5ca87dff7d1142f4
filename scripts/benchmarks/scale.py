"""Evaluation by image size, by batch size, and by one process and two."""

import argparse
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

from configs.loading import find_config
from scripts.benchmarks.interleave import take_turns
from scripts.benchmarks.subject import OURS, Contender, Setting

WARM_UP = 2


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `scale`."""
    recipe, smallest, largest = find_config(options.model), min(options.sizes), max(options.sizes)
    base = Setting(recipe, max(options.batches), smallest, options.threads)
    # about as many pixels in every batch
    by_size = {s: replace(base, size=s, batch=(largest // s) ** 2) for s in sorted(options.sizes)}
    sizes = _measure({s: [setting] for s, setting in by_size.items()}, options.rounds)
    batches = _measure({b: [replace(base, batch=b)] for b in sorted(options.batches)}, options.rounds)
    halves = [replace(base, batch=max(1, base.batch // 2), threads=max(1, base.threads // 2))] * 2
    processes = _measure({1: [base], 2: halves}, options.rounds)

    pixels = {s: [1e9 / (speed * s * s) for speed in speeds] for s, speeds in sizes.items()}
    tables = {
        "time by image size, us per 1,000 pixels": _table("image size", pixels, smallest),
        f"images/s by batch size, at {smallest}": _table("batch", batches, max(batches)),
        f"images/s by processes, {base.batch} images and {base.threads} threads in all": _table(
            "processes", processes, 1
        ),
    }
    setting = f"{options.model}, evaluation, float32, {options.threads} threads, n = {options.rounds}"
    return {"setting": setting, "tables": tables, "rows": {"sizes": pixels, "batches": batches, "processes": processes}}


def _measure(settings: dict[int, list[Setting]], rounds: int) -> dict[int, list[float]]:
    """Returns the images/s of every round; several settings of one entry run at the same time."""
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        contenders = {key: [Contender(OURS, setting) for setting in each] for key, each in settings.items()}
        for contender in chain(*contenders.values()):
            stack.callback(contender.close)

        def together(group: list[Contender]) -> Callable[[], float]:
            return lambda: sum(pool.map(lambda contender: contender.ask("evaluate"), group))

        speeds = take_turns({str(key): together(group) for key, group in contenders.items()}, rounds, WARM_UP)
    return {int(key): values for key, values in speeds.items()}


def _table(title: str, values: dict[int, list[float]], reference: int) -> str:
    """Formats medians, spreads, and the median ratio to `reference` in the same round as Markdown."""
    lines = [f"| {title} | median | lowest to highest | to {title} {reference} |", "|---|---|---|---|"]
    for key, each in values.items():
        ratio = statistics.median(a / b for a, b in zip(each, values[reference], strict=True))
        lines.append(f"| {key} | {statistics.median(each):.1f} | {min(each):.1f} to {max(each):.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="swin_tiny", metavar="NAME", help="file of configs/ (default: swin_tiny)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448, 672, 896, 1024], help="default %(default)s")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64], help="default %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default %(default)s)")
