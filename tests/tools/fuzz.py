"""Runs the program on mutated input and counts what ends badly: python tests/tools/fuzz.py --count 5000 --seed 0

Every input is a valid one with a few mutations: a YAML file, a command line, an image, an archive, a list, a table, a
cached index, a checkpoint, the folder of a run, or a file served over HTTP. A run ends badly if it prints a traceback,
ends with code 1 or by a signal, fails with other than one error line, takes more than 20 s, or takes 1 GiB more memory
than the same command on the valid input. Each such input is kept in --keep, with the command that repeats it.
"""

import argparse
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.tools.fuzz_inputs import KINDS, Material
from tests.tools.warm import Starter, members

SECONDS = 20
MEMORY = 2**30  # bytes beyond the valid input
GOOD_CODES = {0, 2, 3, 4, 5, 6, 7, 75}


@dataclass
class Findings:
    """What ended badly, by kind, and the exit codes of all."""

    codes: dict[str, Counter] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    skipped: int = 0

    def __str__(self) -> str:
        counts = [(kind, sum(codes.values()), dict(sorted(codes.items()))) for kind, codes in self.codes.items()]
        lines = [f"{kind}: {count} inputs, exit codes {codes}" for kind, count, codes in counts]
        late = f", {self.skipped} not run for lack of time" if self.skipped else ""
        return "\n".join([*lines, *self.bad, f"{len(self.bad)} ended badly{late}"])


class Outcome(NamedTuple):
    """The end of a command; seconds and peak memory in bytes."""

    code: int
    text: str
    seconds: float
    memory: int


class Fuzzer:
    """Runs mutated inputs in `folder`, `jobs` at a time. Args: limit: seconds that a command may take."""

    def __init__(self, folder: Path, keep: Path | None = None, jobs: int = 2, limit: float = SECONDS):
        self._folder, self._keep, self._jobs, self._limit = folder, keep, jobs, limit
        self._starter = Starter()
        self._plain: dict[str, int] = {}  # peak memory of each kind on valid input
        self.material = Material(folder / "material")
        trained = self._start(*self.material.training(), folder, {})
        assert trained.code == 0, trained.text
        self.material.load_run()

    def run(self, count: int, seed: int, kinds: list[str], seconds: float = float("inf")) -> Findings:
        """Args: count: inputs, the kinds in turn; seconds: after which no more are started."""
        findings = Findings({kind: Counter() for kind in kinds})
        for kind in kinds:
            valid = self._run(kind, self._folder / "valid" / kind, None)
            assert valid.code == 0, f"{kind}: the valid input fails: {valid.text}"
            self._plain[kind] = valid.memory
        deadline = time.monotonic() + seconds
        with ThreadPoolExecutor(self._jobs) as pool:
            numbers = range(count)
            for kind, outcome in pool.map(lambda n: self._one(kinds[n % len(kinds)], seed, n, deadline), numbers):
                if outcome is None:
                    findings.skipped += 1
                    continue
                code, complaint = outcome
                findings.codes[kind][code] += 1
                if complaint:
                    findings.bad.append(complaint)
                    print(complaint, flush=True)
        return findings

    def close(self) -> None:
        self._starter.close()
        self.material.close()

    def _one(self, kind: str, seed: int, number: int, deadline: float) -> tuple[str, tuple[int, str] | None]:
        if time.monotonic() > deadline:
            return kind, None
        folder = self._folder / f"{kind}_{number}"
        outcome = self._run(kind, folder, random.Random(f"{seed} {kind} {number}"))
        problem = self._problem(kind, outcome)
        if problem and self._keep:
            kept = self._keep / folder.name
            shutil.copytree(folder, kept, dirs_exist_ok=True, symlinks=True)
            (kept / "output.txt").write_text(f"{outcome.text}\n{problem}\n")
        shutil.rmtree(folder, ignore_errors=True)
        return kind, (outcome.code, f"BAD {kind} {number}: {problem}" if problem else "")

    def _problem(self, kind: str, outcome: Outcome) -> str:
        code, text, seconds, memory = outcome
        if seconds > self._limit:
            return f"took {seconds:.0f} s"
        if "Traceback (most recent call last)" in text:
            return "traceback: " + text.strip().rsplit("\n", 1)[-1][:160]
        if code not in GOOD_CODES:
            return f"exit code {code}"
        errors = sum(line.startswith("error: ") for line in text.splitlines())
        if errors != (code != 0):
            return f"{errors} error lines, exit code {code}"
        more = memory - self._plain[kind]
        return f"took {more / 2**20:,.0f} MiB more" if more > MEMORY else ""

    def _run(self, kind: str, folder: Path, draw: random.Random | None) -> Outcome:
        """Args: draw: mutates the input; None leaves it valid."""
        folder.mkdir(parents=True)
        script, arguments, variables = KINDS[kind](folder, self.material, draw)
        (folder / "command.txt").write_text(shlex.join([str(script), *map(str, arguments)]) + f"\n{variables}\n")
        return self._start(script, arguments, folder, variables)

    def _start(self, script: Path, arguments: list[object], folder: Path, variables: dict) -> Outcome:
        started = self._starter.start(script, arguments, folder, self.material.environment | variables)
        process, begun = started.pid, time.monotonic()
        try:
            code = started.wait(self._limit)
        except subprocess.TimeoutExpired:  # it was killed
            code = started.wait(10)
        seconds = time.monotonic() - begun
        for left in members(process):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        return Outcome(code, "\n".join(started.output()), seconds, started.peak_memory)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="inputs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start none after this time")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that ended badly")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    fuzzer = Fuzzer(folder, options.keep, options.jobs)
    try:
        findings = fuzzer.run(options.count, options.seed, options.kinds, options.minutes * 60)
        print(findings, flush=True)
    finally:
        fuzzer.close()
        shutil.rmtree(folder, ignore_errors=True)
    return bool(findings.bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
