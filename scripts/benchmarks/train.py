"""The whole program from end to end beside the bare training step, by one process and by two."""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.benchmarks.contender import OURS, Contender, Setting
from scripts.benchmarks.turns import measure, table
from utils.errors import ResourceError

ROOT = Path(__file__).resolve().parents[2]
BARE = "the bare step"
UPDATES = 14  # of each run; the first half warms up


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `train`."""
    recipe, batch = ROOT / "configs" / f"{options.model}.yaml", options.batch_size
    bare = Contender(OURS, Setting(recipe, batch, options.size, options.threads))
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
            contenders: dict[str, Callable[[], float]] = {
                "one process": lambda: _program(recipe, options, folder, 1),
                BARE: lambda: statistics.median(bare.ask("train") for _ in range(UPDATES // 2)),
                "two processes": lambda: _program(recipe, options, folder, 2),
            }
            rows = measure(contenders, options.rounds)
    finally:
        bare.close()
    setting = (
        f"{options.model} at {options.size}, global batch {batch}, float32, {options.threads} threads shared by all"
        f" processes, random pixels read by one loader worker per process, median of {UPDATES // 2} updates a round,"
        f" n = {options.rounds}; ratios to {BARE} or to two processes, whichever is faster"
    )
    return {"setting": setting, "tables": {"training, fp32": table(rows)}, "rows": [asdict(row) for row in rows]}


def _program(recipe: Path, options: argparse.Namespace, folder: str, processes: int) -> float:
    """Returns images/s of main.py on random pixels, from its log."""
    arguments = ["--cfg", recipe, "--output", tempfile.mkdtemp(dir=folder), "--disable-amp", "--opts"]
    settings = {
        "DATA.DATASET": "synthetic",
        "DATA.IMG_SIZE": options.size,
        "DATA.BATCH_SIZE": options.batch_size // processes,
        "DATA.NUM_WORKERS": 1,
        "PRINT_FREQ": 1,
    }
    arguments += [text for pair in settings.items() for text in pair]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), ROOT / "main.py", *arguments]
    threads = {"OMP_NUM_THREADS": str(max(1, options.threads // processes))}
    with subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        assert program.stdout is not None
        speeds, last = [], ""
        for line in program.stdout:
            last = line.strip() or last
            found = re.search(r" ([\d.,]+) img/s", line)
            if found:
                speeds.append(float(found[1].replace(",", "")))
            if len(speeds) == UPDATES:
                program.terminate()
                program.communicate()
                return statistics.median(speeds[UPDATES // 2 :])
    raise ResourceError(f"the training ended early: {last}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="swin_tiny", metavar="NAME", help="file of configs/ (default: swin_tiny)")
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of the images (default %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default %(default)s)")
