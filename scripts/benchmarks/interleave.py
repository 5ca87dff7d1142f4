"""Measures the compared implementations in alternation, tabulates the results and records the environment."""

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from utils.runs.provenance import versions
from utils.runtime import processor_name

PRODUCTS = "matrix products alone"  # an upper limit, no contender


@dataclass(frozen=True)
class Row:
    """Images/s of one contender: median, slowest and fastest round; `ratio`: to the fastest other library in the same
    round, NaN if there is none."""

    name: str
    median: float
    slowest: float
    fastest: float
    rounds: int
    ratio: float
    lowest_ratio: float
    highest_ratio: float


def take_turns(
    contenders: dict[str, Callable[[], float]],
    rounds: int,
    warm_up: int = 1,
    parts: int = 1,
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Runs every contender once per turn, in random order, after `warm_up` unmeasured turns.

    Random order matters because dense work can throttle a processor for the next contender. Several short turns per
    round average out the speed of a shared machine, which changes within seconds.
    Args: contenders: each call does some work and returns its images/s; parts: turns per round; seconds: no further
    round begins after this time, except the first.
    Returns: the images/s of every round.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    draw = random.Random(0)

    def turn() -> dict[str, float]:
        return {name: contenders[name]() for name in draw.sample(list(contenders), len(contenders))}

    last = time.monotonic() + seconds
    for number in range(warm_up):
        if number and time.monotonic() > last:
            break
        for name, speed in turn().items():
            print(f"warm-up {name}: {speed:.1f} images/s", flush=True)
    for number in range(rounds):
        if number and time.monotonic() > last:
            break
        turns = [turn() for _ in range(parts)]
        for name, of_rounds in speeds.items():
            of_rounds.append(statistics.harmonic_mean(each[name] for each in turns))
            print(f"round {number + 1} {name}: {of_rounds[-1]:.1f} images/s", flush=True)
    return speeds


def compare(speeds: dict[str, list[float]]) -> list[Row]:
    """Returns a row per contender. Args: speeds: {contender: images/s of every round}, this program's first."""
    ours = next(iter(speeds))  # prefix of its compiled variants
    peers = [name for name in speeds if not name.startswith((ours, PRODUCTS))]
    best = [max((speeds[peer][i] for peer in peers), default=math.nan) for i in range(len(next(iter(speeds.values()))))]
    rows = []
    for name, values in speeds.items():
        ratios = [value / peer for value, peer in zip(values, best, strict=True)]
        spread = (statistics.median(ratios), min(ratios), max(ratios))
        rows.append(Row(name, statistics.median(values), min(values), max(values), len(values), *spread))
    return rows


def timed(work: Callable[[], int]) -> Callable[[], float]:
    """Converts work that returns a number of images to a function that returns images/s."""

    def images_per_second() -> float:
        begun = time.perf_counter()
        images = work()
        return images / (time.perf_counter() - begun)

    return images_per_second


def table(rows: Iterable[Row]) -> str:
    """Formats the rows as Markdown."""
    lines = ["| | images/s, median | slowest to fastest | to the fastest peer, median | lowest to highest |"]
    lines += ["|---|---|---|---|---|"]
    for r in rows:
        ratios = " | " if math.isnan(r.ratio) else f"{r.ratio:.2f} | {r.lowest_ratio:.2f} to {r.highest_ratio:.2f}"
        lines.append(f"| {r.name} | {r.median:.1f} | {r.slowest:.1f} to {r.fastest:.1f} | {ratios} |")
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """Returns hardware and versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {"processor": processor_name(), "cores": os.cpu_count(), "gpu": gpu}
    return {"date": date.today().isoformat(), **machine, "versions": versions() | _version("transformers")}


def _version(package: str) -> dict[str, str]:
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}
