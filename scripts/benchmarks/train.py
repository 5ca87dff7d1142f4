"""The whole program from end to end beside the bare training step, by one process and by two."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from configs.loading import find_config
from scripts.benchmarks.interleave import compare, table, take_turns
from scripts.benchmarks.stopwatch import MARK, PARTS
from scripts.benchmarks.subject import OURS, Contender, Setting
from utils.errors import ConfigError, ResourceError

ROOT = Path(__file__).resolve().parents[2]
BARE, ONE, TWO = "the bare step", "one process", "two processes"
TITLES = dict(zip(PARTS, ("waiting for data", "step", "counting and logging", "saving, when it is due"), strict=True))
WARM_UP = 1  # rounds
UPDATES = 14  # of each run; the first half warms up, and ends with a save as the second half does


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `train`."""
    recipe, batch = find_config(options.model), options.batch_size
    alone = torch.cuda.device_count() == 1  # a process has a GPU of its own
    if batch % 2 and not alone:
        raise ConfigError(f"a batch of {batch} images cannot be shared by two processes: --batch-size: set an even one")
    bare = Contender(OURS, Setting(recipe, batch, options.size, options.threads))
    laps: list[dict[str, float]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:

            def program(processes: int) -> float:
                new = _program(recipe, options, folder, processes)
                laps.extend(new if processes == 1 else [])
                return batch / statistics.median(lap["data"] + lap["step"] + lap["log"] for lap in new)

            contenders: dict[str, Callable[[], float]] = {
                ONE: lambda: program(1),
                BARE: lambda: statistics.median(bare.ask("train") for _ in range(UPDATES // 2)),
            }
            if not alone:
                contenders[TWO] = lambda: program(2)
            speeds = take_turns(contenders, options.rounds, WARM_UP)
    finally:
        bare.close()
        bare.join()
    setting = (
        f"{options.model} at {options.size}, global batch {batch}, float32, {options.threads} threads shared by all"
        f" processes, random pixels read by one loader worker per process, median of {UPDATES // 2} updates a round"
        f" without saving, n = {options.rounds}"
    )
    counted = laps[WARM_UP * UPDATES // 2 :]
    pairs = {f"{ONE} to {BARE}": (ONE, BARE), f"{TWO} to {ONE}": (TWO, ONE)}
    rows = {
        title: compare({name: speeds[name] for name in pair})
        for title, pair in pairs.items()
        if speeds.keys() >= set(pair)
    }
    return {
        "setting": setting,
        "tables": {title: table(each) for title, each in rows.items()} | {f"an update of {ONE}": _split(counted)},
        "rows": {title: [asdict(row) for row in each] for title, each in rows.items()} | {"laps": counted},
    }


def _split(laps: list[dict[str, float]]) -> str:
    lines = ["| | ms, median | least to most |", "|---|---|---|"]
    for part in PARTS:
        values = [1000 * lap[part] for lap in laps if part != "save" or lap[part] > 0]
        lines.append(f"| {TITLES[part]} | {statistics.median(values):.1f} | {min(values):.1f} to {max(values):.1f} |")
    return "\n".join(lines)


def _program(recipe: Path, options: argparse.Namespace, folder: str, processes: int) -> list[dict[str, float]]:
    """Returns the laps of main.py on random pixels, without the first half."""
    settings = {
        "DATA.DATASET": "synthetic",
        "DATA.IMG_SIZE": options.size,
        "DATA.BATCH_SIZE": options.batch_size // processes,
        "DATA.NUM_WORKERS": 1,
        "TRAIN.SAVE_EVERY_UPDATES": UPDATES // 2,
    }
    arguments = ["--cfg", recipe, "--output", tempfile.mkdtemp(dir=folder), "--disable-amp", "--opts"]
    arguments += [text for pair in settings.items() for text in pair]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--no-python"]
    python = [sys.executable, "-m", "scripts.benchmarks.stopwatch"]
    command = [*([sys.executable, *launcher] if processes > 1 else []), *python, *arguments]
    threads = {"OMP_NUM_THREADS": str(max(1, options.threads // processes))}
    with subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    ) as program:
        assert program.stdout is not None
        laps, last = [], ""
        for line in program.stdout:
            last = line.strip() or last
            if line.startswith(MARK):  # once per rank
                laps.append(json.loads(line.removeprefix(MARK)))
            if len(laps) == UPDATES * processes:
                program.terminate()
                program.communicate()
                return laps[len(laps) // 2 :]
    raise ResourceError(f"the training ended early: {last}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="swin_tiny", metavar="NAME", help="file of configs/ (default: swin_tiny)")
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of the images (default %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default %(default)s)")
