"""Starts of the program that cost a tenth of a fresh one: forks of a process that has imported it already.

What a run does afterwards is the same: main.py is executed as `__main__`, with its own arguments, environment, working
folder and output. What belongs to the start itself (torchrun, signals before the imports, variables that a library
reads when it is imported) needs a fresh start.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Starter:
    """Starts programs; the process that is forked begins with the first start."""

    def __init__(self) -> None:
        self._server: subprocess.Popen | None = None

    def run(self, arguments: Sequence[str], cwd: Path, ranks: Sequence[dict[str, str]], output: Path) -> int:
        """Runs the program to its end, once per rank, and returns the first exit code that is not 0.

        As with torchrun, the ranks that are left are told to end (SIGTERM) when one has failed.

        Args:
            ranks: the environment of each.
            output: folder that `out` and `err` are written to.
        """
        if self._server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._server = subprocess.Popen([sys.executable, "-m", "tests.warm"], cwd=ROOT, env=ranks[0], **pipes)
        order = {"arguments": list(arguments), "cwd": str(cwd), "ranks": list(ranks), "output": str(output)}
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


def _wait(pids: set[int]) -> int:
    """Returns the first exit code that is not 0."""
    first = 0
    while pids:
        pid, status = os.wait()
        pids.discard(pid)
        if not first and (first := os.waitstatus_to_exitcode(status)):
            for other in pids:
                os.kill(other, signal.SIGTERM)
    return first


def _become(order: dict, environment: dict[str, str]) -> None:
    """Makes this process one that was started with the order's arguments."""
    for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
        file = os.open(Path(order["output"]) / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(order["cwd"])
    sys.argv = [str(ROOT / "main.py"), *order["arguments"]]
    sys.path[0] = str(ROOT)


def _serve() -> bool:
    """Forks for every order; returns whether this is a fork, with an order to carry out."""
    for line in sys.stdin:
        order, pids = json.loads(line), set()
        for environment in order["ranks"]:
            pid = os.fork()
            if not pid:
                _become(order, environment)
                return True
            pids.add(pid)
        print(json.dumps(_wait(pids)), flush=True)
    return False


if __name__ == "__main__":
    import torch.utils.tensorboard  # noqa: F401  what the program imports when it needs it

    import main  # noqa: F401

    # the fork returns to here, so that its interpreter ends as one that was started does
    if _serve():
        runpy.run_path(sys.argv[0], run_name="__main__")
