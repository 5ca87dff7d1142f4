"""Models compared with timm, torchvision and transformers: evaluation, training step, peak memory."""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from configs.loading import find_config, load_config
from scripts.benchmarks.interleave import PRODUCTS, Row, compare, table, take_turns
from scripts.benchmarks.subject import OURS, PEERS, Contender, Setting
from utils.precision import relative_speed
from utils.preprocessing import image_size

TASKS = {"train": "training step", "evaluate": "evaluation"}
# suffixes of contenders by torch.compile mode
COMPILED = {"default": ", compiled", "reduce-overhead": ", compiled with CUDA graphs"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# steps until process memory stops growing
WARM_UP = 6
QUICK = 180.0  # seconds of --quick
RESERVE = 15.0  # of these, for what follows the last round of a measurement


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `model`."""
    tables, rows = {}, {}
    options.dtypes = options.dtypes or _faster_dtypes()
    limit = Limit(options.seconds, len(options.models) * len(options.dtypes) * len(TASKS))
    for name, contenders in _contenders(options):
        for title, measured in _measure(contenders, options, limit).items():
            tables[f"{name}, {title}"] = table(measured) if isinstance(measured, list) else _memory(measured)
            rows[f"{name}, {title}"] = [asdict(r) for r in measured] if isinstance(measured, list) else measured
    peers = "with this program's process settings" if options.tuned_peers else "with default settings"
    setting_line = (
        f"batch {options.batch_size}, {options.threads} threads, stochastic depth of the recipe, peers {peers},"
        f" n = {options.rounds} after {options.warm_up} steps of warm-up{limit}"
    )
    facts = {"batch_size": options.batch_size, "tuned_peers": options.tuned_peers}
    return {"setting": setting_line, **facts, "tables": tables, "rows": rows}


class Limit:
    """Divides the remaining time among the remaining measurements. Args: seconds: in total; count: measurements."""

    def __init__(self, seconds: float, count: int):
        self._seconds, self._count, self._last = seconds, count, time.monotonic() + seconds - RESERVE

    def next(self) -> float:
        """Returns the seconds for the next measurement."""
        share = max(0.0, self._last - time.monotonic()) / self._count
        self._count -= 1
        return share

    def __str__(self) -> str:
        return "" if self._seconds == math.inf else f", limited to about {self._seconds / 60:g} minutes"


def _faster_dtypes() -> list[str]:
    """Returns the dtypes to measure by default: bfloat16 only where it is faster than float32."""
    if torch.cuda.is_available() or (ratio := relative_speed(torch.bfloat16)) > 1:
        return list(DTYPES)
    print(f"skipped: bf16, whose matrix products take {1 / ratio:.3g} times as long as in fp32 here", flush=True)
    return ["fp32"]


def _contenders(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Contender]]]:
    """Yields the name and contenders of each model; contenders of all models are compiled concurrently."""
    models = ((name, _start(name, options)) for name in options.models)
    if options.compiled or options.graphs:
        models = list(models)  # type: ignore[assignment]
        every = [each for _, own in models for name, each in own.items() if _is_compiled(name)]
        with ThreadPoolExecutor(max(1, len(every))) as pool:
            list(pool.map(lambda each: [each.measure(t, DTYPES[d]) for t in TASKS for d in options.dtypes], every))
    yield from models


def _start(name: str, options: argparse.Namespace) -> dict[str, Contender]:
    recipe = find_config(name)
    size = options.size or image_size(load_config(recipe).DATA.IMG_SIZE)[0]
    setting = Setting(recipe, options.batch_size, size, options.threads, tuned=options.tuned_peers)
    contenders: dict[str, Contender] = {}
    for each in (OURS, *options.peers):
        contenders[each] = Contender(each, setting)
        for mode, chosen in (("default", options.compiled), ("reduce-overhead", options.graphs)):
            if each.replace(OURS, "ours") in chosen:
                contenders[each + COMPILED[mode]] = Contender(each, replace(setting, compiled=mode))
    if not torch.cuda.is_available():
        contenders[PRODUCTS] = Contender(PRODUCTS, setting)
    for missing in [name for name, contender in contenders.items() if not contender.exists]:
        print(f"skipped, not installed: {missing}", flush=True)
        del contenders[missing]
    return contenders


def _measure(
    contenders: dict[str, Contender], options: argparse.Namespace, limit: Limit
) -> dict[str, list[Row] | dict[str, float]]:
    result: dict[str, list[Row] | dict[str, float]] = {}
    try:
        # memory is compared after the first measurement, the training step
        for task in TASKS:
            for dtype in options.dtypes:
                calls: dict[str, Callable[[], float]] = {
                    name: partial(each.measure, task, DTYPES[dtype]) for name, each in contenders.items()
                }
                warm_up = options.warm_up if task == "train" else min(2, options.warm_up)
                speeds = take_turns(calls, options.rounds, warm_up, seconds=limit.next())
                result[f"{TASKS[task]}, {dtype}"] = compare(speeds)
                if len(result) == 1:
                    memory = {name: each.measure("memory") for name, each in contenders.items() if _has_peak(name)}
        result[f"peak memory of a training step, {options.dtypes[0]}, MiB"] = memory
    finally:
        for contender in contenders.values():
            contender.close()
        for contender in contenders.values():
            contender.join()
    return result


def _is_compiled(name: str) -> bool:
    return name.endswith(tuple(COMPILED.values()))


def _has_peak(name: str) -> bool:
    """Returns whether the peak is that of a training step; on the CPU, a compiled contender includes the compiler's."""
    return torch.cuda.is_available() or not (_is_compiled(name) or name == PRODUCTS)


def _memory(values: dict[str, float]) -> str:
    least = min((value for name, value in values.items() if not name.startswith(OURS)), default=values[OURS])
    lines = ["| | MiB | to the peer with the least |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value:,.0f} | {value / least:.2f} |" for name, value in values.items())])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", nargs="+", default=["swin_tiny"], metavar="NAME", help="recipes (default: swin_tiny)"
    )
    parser.add_argument(
        "--quick", action=Quick, help="batch size 8, 2 + 3 rounds, about 3 minutes; writes output/benchmark.json"
    )
    parser.set_defaults(seconds=math.inf)
    parser.add_argument("--batch-size", type=int, default=16, help="default %(default)s")
    parser.add_argument("--size", type=int, default=0, help="side of the images (default: the recipe's)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[], help="default: fp32, and bf16 if faster")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default %(default)s)")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="unmeasured rounds (default %(default)s)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="default: all")
    parser.add_argument(
        "--compiled", nargs="+", choices=("ours", *PEERS), default=[], help="also measure these compiled"
    )
    parser.add_argument(
        "--graphs",
        nargs="+",
        choices=("ours", *PEERS),
        default=[],
        help="also measure these with CUDA graphs (reduce-overhead)",
    )
    parser.add_argument("--tuned-peers", action="store_true", help="give peers this program's process settings")


class Quick(argparse.Action):
    """Sets batch size, rounds and time, and a file for the result."""

    def __init__(self, **arguments: Any):
        super().__init__(nargs=0, **arguments)

    def __call__(self, _parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        namespace.batch_size, namespace.rounds, namespace.warm_up, namespace.seconds = 8, 3, 2, QUICK
        namespace.json = namespace.json or Path("output/benchmark.json")
