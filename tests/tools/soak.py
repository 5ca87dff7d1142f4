"""Kills a run again and again and compares its end with a run that was left alone.

python tests/tools/soak.py --kills 200 --seed 1

Everything is on: RandAugment, erasing, mixup and CutMix, stochastic depth, EMA, clipping, accumulation, workers. The
kills hit a rank or all of them, a loader worker, the fork server, the resource tracker or the launcher, in every phase
of a run. Each must end the run within 30 seconds, with the right code and at most one error line, or change nothing. At
the end losses, weights, EMA, optimizer and TensorBoard scalars must be equal bit for bit.
"""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.sources.digits import write_digits
from tests.tools.warm import Starter, free_port, members, rank_variables
from utils.script_parser import ScriptParser

RECIPE = """
BASE: [{root}/configs/quickstart.yaml]
DATA: {{IMG_SIZE: 16, BATCH_SIZE: 24, NUM_WORKERS: 1}}
MODEL:
  NAME: soak
  DROP_PATH_RATE: 0.2
  SWIN: {{PATCH_SIZE: 2, EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4]}}
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
PHASES = ("step", "save", "evaluation", "epoch", "start", "imports", "rendezvous")
_MOST = {"step": 12, "save": 24, "evaluation": 3}  # calls of a phase in an epoch, once in the others
TARGETS = dict.fromkeys(PHASES, ("rank", "worker", "server", "tracker", "launcher"))
TARGETS |= dict.fromkeys(("imports", "rendezvous"), ("rank", "launcher"))
TARGETS["start"] = ("rank", "server", "tracker", "launcher")  # workers start with the first epoch
# by target: what the error line blames, and the exit codes of the first rank that ends; a negative one is a signal
OUTCOMES: dict[str, tuple[str, tuple[int, ...]]] = {
    "rank": (r"rank {rank}|MASTER_ADDR|SIGTERM", (-9, 5, 75)),
    "worker": ("DATA.NUM_WORKERS", (7,)),
    "server": ("DATA.NUM_WORKERS", (7,)),
    "tracker": ("nothing", ()),
    "launcher": ("torchrun", (5,)),
}
SOON = 30.0  # seconds from a kill to the end of the run
_HANGS = 900.0  # seconds after which a run is ended


@dataclass(frozen=True)
class Kill:
    """At the `count`-th call of `phase` by `rank`, -1 for all ranks at once."""

    phase: str
    count: int
    rank: int
    target: str = "rank"
    launched: bool = True  # by torchrun, otherwise as srun starts ranks

    @property
    def fewest_lines(self) -> int:
        """Error lines that must be there: none if all ranks were killed, or if rank 0 was before it had met the others,
        which do not know whether it had reported something; then torchrun's own report names it."""
        early = self.rank == 0 and self.launched and self.phase in ("imports", "rendezvous")
        return 0 if self.target == "rank" and (self.rank < 0 or early) else 1

    def fault(self) -> str:
        """Returns the fault for inject.py."""
        action = "kill" if self.target == "rank" else f"kill={self.target}"
        return f"{self.phase}:{self.count}:{action}" + ("" if self.rank < 0 else f":{self.rank}")


@dataclass(frozen=True)
class Outcome:
    """The exit code of the launcher or of the only process, what was printed, and seconds from the kill to the end."""

    code: int
    out: str
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return "injected kill" in self.out

    def fault_of(self, kill: Kill) -> str:
        """Returns what is wrong with the end of a run after a kill, "" for nothing."""
        blamed, codes = OUTCOMES[kill.target]
        errors = [line for line in self.out.splitlines() if line.startswith("error: ")]
        noise = [text for text in ("Exception ignored", "Exception in thread") if text in self.out]
        tracebacks = self.out.count("Traceback (most recent call last)") - self.out.count("ChildFailedError(")
        if noise or tracebacks > 0:
            return f"noise: {noise or 'a traceback'}"
        if self.code == 0:
            return f"error lines: {errors}" if errors else ""
        if self.seconds > SOON:
            return f"ended after {self.seconds:.0f} s"
        if not kill.fewest_lines <= len(errors) <= 1:
            return f"{len(errors)} error lines"
        if not errors and kill.launched and "Signal 9 (SIGKILL) received" not in self.out:
            return "nobody names the killed rank"
        if errors and not re.match(f"error: (?:{blamed.format(rank=kill.rank)})", errors[0]):
            return f"blames another: {errors[0]}"
        first = re.search(r"Root Cause.*?exitcode\s*: (-?\d+)", self.out, re.DOTALL)
        code = int(first[1]) if first else self.code
        return "" if code in codes or (kill.target == "launcher" and code == -9) else f"code {code}"


def draw_kills(count: int, seed: int, processes: int) -> list[Kill]:
    """Draws the kills: every phase in turn; place, rank and target at random."""
    draw = random.Random(seed)
    phases = PHASES if processes > 1 else PHASES[:-1]
    kills = []
    for number in range(count):
        phase = phases[number % len(phases)]
        target = draw.choice([each for each in TARGETS[phase] if processes > 1 or each != "launcher"])
        first = -1 if target == "rank" else 0
        rank = 0 if phase in ("save", "epoch") else draw.randrange(first, processes)
        if target == "rank" and processes == 1:
            rank = -1
        launched = target == "launcher" or phase in ("imports", "rendezvous") or draw.random() < 0.25
        launched = launched and processes > 1
        kills.append(Kill(phase, draw.randint(1, _MOST.get(phase, 1)), rank, target, launched))
    return kills


def run(folder: Path, recipe: Path, output: Path, processes: int, faults: str = "") -> Outcome:
    """Runs the program by torchrun, or alone, until all of its processes have ended."""
    head = [sys.executable]
    if processes > 1:
        head += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    program = [str(ROOT / "tests" / "tools" / "inject.py"), faults]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SWIN_SOAK": str(folder)}
    lines, killed = [], 0.0
    with subprocess.Popen(
        [*head, *program, *arguments(folder, recipe, output)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        guard = threading.Timer(_HANGS, lambda: [os.kill(process, signal.SIGKILL) for process in leftovers(folder)])
        guard.start()
        for line in job.stdout or ():  # until nobody can write to it
            lines.append(line)
            killed = killed or (time.monotonic() if "injected kill" in line else 0.0)
        guard.cancel()
    return Outcome(job.returncode, "".join(lines), time.monotonic() - killed if killed else 0.0)


def run_warm(starter: Starter, folder: Path, recipe: Path, output: Path, processes: int, faults: str = "") -> Outcome:
    """Runs the ranks without torchrun, forked from a process that has imported the program."""
    port, program = free_port(), ROOT / "tests" / "tools" / "inject.py"
    own = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [faults, *arguments(folder, recipe, output)]
    ranks = [starter.start(program, line, ROOT, own | rank_variables(r, processes, port)) for r in range(processes)]
    begun, killed, code = time.monotonic(), 0.0, 0
    while True:
        codes = [rank.poll() for rank in ranks]
        code = code or next(filter(None, codes), 0)  # of the first that failed
        left = [process for rank in ranks for process in members(rank.pid)]
        out = "".join(text for rank in ranks for text in rank.output())
        killed = killed or (time.monotonic() if "injected kill" in out else 0.0)
        if not left and None not in codes:
            return Outcome(code, out, time.monotonic() - killed if killed else 0.0)
        if time.monotonic() - begun > _HANGS:
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def arguments(folder: Path, recipe: Path, output: Path) -> list[str]:
    """Returns the program's arguments; `soak` has written digits and recipe."""
    return ["--cfg", str(recipe), "--data-path", str(folder / "digits"), "--output", str(output)]


def soak(folder: Path, kills: list[Kill], processes: int, epochs: int) -> tuple[str, Counter[str]]:
    """Returns what went wrong, one line each, and counts of kills by phase, restarts and finished runs."""
    write_digits(folder / "digits")
    recipe = folder / "soak.yaml"
    recipe.write_text(RECIPE.format(root=ROOT, epochs=epochs, warmup=min(1, epochs - 1)))
    alone = run(folder, recipe, folder / "undisturbed", processes)
    if alone.code:
        raise RuntimeError(f"the undisturbed run failed: {alone.out}")
    counts: Counter[str] = Counter()
    waiting, starter, bad = list(kills), Starter(), list[str]()

    def start(output: Path, kill: Kill | None) -> Outcome:
        faults = kill.fault() if kill else ""
        if kill and kill.launched:
            return run(folder, recipe, output, processes, faults)
        return run_warm(starter, folder, recipe, output, processes, faults)

    try:
        while True:
            output = folder / f"killed_{counts['runs']}"
            difference = _kill_until_done(start, output, waiting, counts)
            difference = difference or compare(folder / "undisturbed" / "soak/default", output / "soak/default")
            counts["runs"] += 1
            if difference:
                print(f"BAD {difference}", flush=True)
                bad.append(difference.partition("\n")[0])
            if not waiting:
                return "\n".join(bad), counts
    finally:
        starter.close()


def _kill_until_done(
    start: Callable[[Path, Kill | None], Outcome], output: Path, waiting: list[Kill], counts: Counter[str]
) -> str:
    """Restarts one run until it has ended by itself; takes the kills it needs from `waiting`."""
    while True:
        kill = waiting.pop(0) if waiting else None
        ended = start(output, kill)
        if kill and ended.killed:
            counts[kill.phase] += 1
            counts[kill.target] += 1
            counts["by torchrun"] += kill.launched
            counts["restarts"] += ended.code != 0
            place = f"{sum(counts[p] for p in PHASES)} kills, {kill}, code {ended.code} after {ended.seconds:.1f} s"
            print(f"{time.strftime('%H:%M:%S')} {place}", flush=True)
            if fault := ended.fault_of(kill):
                return f"{fault} after {kill} of {output}: {ended.out}"
            if ended.code == 0:  # it needed nothing of what was killed
                return ""
        elif ended.code == 0:
            if kill:  # the run was over before the place was reached: the next one takes it
                waiting.insert(0, kill)
            return ""
        else:
            return f"{output} ended with {ended.code}: {ended.out}"


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
