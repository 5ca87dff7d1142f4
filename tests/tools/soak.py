"""Kills a run again and again and compares its end with a run that was left alone.

python tests/tools/soak.py --kills 200 --seed 1

Everything is on: RandAugment, erasing, mixup and CutMix, stochastic depth, EMA, clipping, accumulation, workers. The
kills hit updates, saves, evaluations, the time between epochs and the start, of one rank or of all. Losses, weights,
EMA, optimizer and TensorBoard scalars must be equal bit for bit.
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.sources.digits import write_digits
from utils.script_parser import ScriptParser

RECIPE = """
BASE: [{root}/configs/quickstart.yaml]
DATA: {{BATCH_SIZE: 24, NUM_WORKERS: 1}}
MODEL: {{NAME: soak, DROP_PATH_RATE: 0.2}}
TRAIN:
  EPOCHS: {epochs}
  WARMUP_EPOCHS: {warmup}
  GLOBAL_BATCH_SIZE: 96
  SAVE_EVERY_UPDATES: 4
  CLIP_GRAD: 1.0
  EMA: {{ENABLE: true, DECAY: 0.9}}
AUG: {{AUTO_AUGMENT: rand-m9-mstd0.5-inc1, REPROB: 0.25, MIXUP: 0.8, CUTMIX: 1.0}}
PRINT_FREQ: 4
"""
PHASES = ("step", "save", "evaluation", "epoch", "start")


@dataclass(frozen=True)
class Kill:
    """At the `count`-th call of `phase`; `rank` -1 for all ranks at once."""

    phase: str
    count: int
    rank: int

    def fault(self) -> str:
        """Returns the fault for inject.py."""
        return f"{self.phase}:{self.count}:kill" + ("" if self.rank < 0 else f":{self.rank}")


def draw_kills(count: int, seed: int, processes: int) -> list[Kill]:
    """Draws the kills: every phase in turn, place and rank at random."""
    draw = random.Random(seed)
    most = {"step": 12, "save": 24, "evaluation": 3, "epoch": 1, "start": 1}
    kills = []
    for number in range(count):
        phase = PHASES[number % len(PHASES)]
        rank = 0 if phase in ("save", "epoch") else draw.randrange(-1, processes)
        kills.append(Kill(phase, draw.randint(1, most[phase]), rank))
    return kills


def run(folder: Path, recipe: Path, output: Path, processes: int, faults: str = "") -> tuple[int, str]:
    """Runs the program; returns its exit code and what it printed."""
    head = [sys.executable]
    if processes > 1:
        head += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    program = [str(ROOT / "tests" / "tools" / "inject.py"), faults]
    done = subprocess.run(
        [*head, *program, *arguments(folder, recipe, output)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SWIN_SOAK": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout


def arguments(folder: Path, recipe: Path, output: Path) -> list[str]:
    """Returns the program's arguments; `soak` has written digits and recipe."""
    return ["--cfg", str(recipe), "--data-path", str(folder / "digits"), "--output", str(output)]


def soak(folder: Path, kills: list[Kill], processes: int, epochs: int) -> tuple[str, Counter[str]]:
    """Returns the first difference ("" if there is none) and counts of kills by phase, restarts and finished runs."""
    write_digits(folder / "digits")
    recipe = folder / "soak.yaml"
    recipe.write_text(RECIPE.format(root=ROOT, epochs=epochs, warmup=min(1, epochs - 1)))
    code, out = run(folder, recipe, folder / "undisturbed", processes)
    if code:
        raise RuntimeError(f"the undisturbed run failed: {out}")
    counts: Counter[str] = Counter()
    waiting = list(kills)
    while True:
        output = folder / f"killed_{counts['runs']}"
        difference = _kill_until_done(folder, recipe, output, processes, waiting, counts)
        difference = difference or compare(folder / "undisturbed" / "soak/default", output / "soak/default")
        counts["runs"] += 1
        if difference or not waiting:
            return difference, counts


def _kill_until_done(
    folder: Path, recipe: Path, output: Path, processes: int, waiting: list[Kill], counts: Counter[str]
) -> str:
    """Restarts one run until it has ended by itself; takes the kills it needs from `waiting`."""
    while True:
        kill = waiting.pop(0) if waiting else None
        code, out = run(folder, recipe, output, processes, kill.fault() if kill else "")
        if kill and "injected kill" in out:
            counts[kill.phase] += 1
            counts["restarts"] += 1
            print(f"{time.strftime('%H:%M:%S')} {sum(counts[p] for p in PHASES)} kills, {kill}", flush=True)
        elif code == 0:
            if kill:  # the run was over before the place was reached: the next one takes it
                waiting.insert(0, kill)
            return ""
        else:
            return f"{output} ended with {code}: {out}"


def compare(one: Path, other: Path) -> str:
    """Returns the first difference between two finished runs, "" if they are equal bit for bit."""
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        return f"metrics.jsonl of {other}"
    for name in ("last.pth", "best.pth"):
        contents = [torch.load(f / "checkpoints" / name, weights_only=True) for f in (one, other)]
        for key in ("model", "model_ema", "optimizer", "counters", "best", "means"):
            if not equal(contents[0][key], contents[1][key]):
                return f"{key} of {name} of {other}"
    wanted, found = scalars(one), scalars(other)
    for tag, values in wanted.items():
        if not tag.startswith("speed") and found.get(tag) != values:
            return f"TensorBoard's {tag} of {other}"
    return ""


def equal(one: Any, other: Any) -> bool:
    """Returns whether nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns what TensorBoard shows: (update, value) of every tag."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports what it leaves out
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def leftovers(folder: Path) -> list[int]:
    """Returns the processes of runs in `folder` that are still there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"SWIN_SOAK={folder}\0".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of phases, places and ranks (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="ranks (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="of a run (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path("output/soak"), help="must not exist (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True)
    started = time.monotonic()
    kills = draw_kills(options.kills, options.seed, options.processes)
    difference, counts = soak(options.folder.resolve(), kills, options.processes, options.epochs)
    ended = time.monotonic()
    while leftovers(options.folder.resolve()) and time.monotonic() < ended + 10:
        time.sleep(0.2)
    for process in (left := leftovers(options.folder.resolve())):
        os.kill(process, signal.SIGKILL)
    minutes = (time.monotonic() - started) / 60
    summary = {**counts, "leftover processes": len(left), "minutes": round(minutes, 1)}
    print(json.dumps(summary))
    print(f"different: {difference}" if difference else "bit-equal")
    return 1 if difference or left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
