"""Models beside those of timm, torchvision and transformers: evaluation, training step, peak memory."""

import argparse
from dataclasses import asdict
from typing import Any

import torch

from configs.loading import find_config, load_config
from scripts.benchmarks.contender import OURS, PEERS, Contender, Setting
from scripts.benchmarks.turns import CEILING, Row, measure, table
from utils.preprocessing import image_size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# steps until the memory of a process stops growing
WARM_UP = 6


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `model`."""
    tables, rows = {}, {}
    for name in options.models:
        recipe = find_config(name)
        size = options.size or image_size(load_config(recipe).DATA.IMG_SIZE)[0]
        setting = Setting(recipe, options.batch_size, size, options.threads, options.compile, options.tuned_peers)
        for title, measured in _measure(setting, options).items():
            tables[f"{name}, {title}"] = table(measured) if isinstance(measured, list) else _memory(measured)
            rows[f"{name}, {title}"] = [asdict(r) for r in measured] if isinstance(measured, list) else measured
    how = " compiled," if options.compile else ""
    peers = "with this program's process settings" if options.tuned_peers else "as they come"
    setting_line = (
        f"batch {options.batch_size},{how} {options.threads} threads, stochastic depth of the recipe, peers {peers},"
        f" n = {options.rounds} after {WARM_UP} steps of warm-up"
    )
    return {"setting": setting_line, "tables": tables, "rows": rows}


def _measure(setting: Setting, options: argparse.Namespace) -> dict[str, list[Row] | dict[str, float]]:
    contenders = {name: Contender(name, setting) for name in (OURS, *PEERS, CEILING)}
    contenders = {name: contender for name, contender in contenders.items() if contender.exists}
    result: dict[str, list[Row] | dict[str, float]] = {}
    try:
        # the first that is measured is the step whose memory is compared
        for task in ("train", "evaluate"):
            for dtype in options.dtypes:
                asks = {name: _asking(contender, task, DTYPES[dtype]) for name, contender in contenders.items()}
                rows = measure(asks, options.rounds, WARM_UP if task == "train" else 2)
                result[f"{'training step' if task == 'train' else 'evaluation'}, {dtype}"] = rows
                if len(result) == 1:
                    memory = {name: each.ask("memory") for name, each in contenders.items() if name != CEILING}
        result[f"peak memory of a training step, {options.dtypes[0]}, MiB"] = memory
    finally:
        for contender in contenders.values():
            contender.close()
    return result


def _asking(contender: Contender, task: str, dtype: torch.dtype) -> Any:
    return lambda: contender.ask(task, dtype)


def _memory(values: dict[str, float]) -> str:
    least = min(value for name, value in values.items() if name != OURS)
    lines = ["| | MiB | to the peer with the least |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value:,.0f} | {value / least:.2f} |" for name, value in values.items())])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", nargs="+", default=["swin_tiny"], metavar="NAME", help="files of configs/ (default: swin_tiny)"
    )
    parser.add_argument("--quick", action=Quick, help="batch 8, 3 rounds: under 3 minutes on two cores")
    parser.add_argument("--batch-size", type=int, default=16, help="default %(default)s")
    parser.add_argument("--size", type=int, default=0, help="side of the images (default: the recipe's)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"], help="default: fp32 bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    parser.add_argument("--tuned-peers", action="store_true", help="give peers this program's process settings")


class Quick(argparse.Action):
    """Sets other options."""

    def __init__(self, **arguments: Any):
        super().__init__(nargs=0, **arguments)

    def __call__(self, _parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        namespace.batch_size, namespace.rounds = 8, 3
