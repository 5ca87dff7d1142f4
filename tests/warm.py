"""Starts of the program that cost a tenth of a fresh one: forks of a process that has imported it already.

What a run does afterwards is the same: the script is executed as `__main__`, with its own arguments, environment,
working folder, output and session. What belongs to the start itself (torchrun, signals before the imports, variables
that a library reads when it is imported) needs a fresh one.
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Started:
    """A started program, with the methods of subprocess.Popen that tests use; its output goes to files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        while not (self._folder / "pid").exists():
            time.sleep(0.001)
        return int((self._folder / "pid").read_text())

    def poll(self) -> int | None:
        """Returns the exit code, minus the signal that ended it, or None while it runs."""
        if self.returncode is None and (self._folder / "code").exists():
            self.returncode = int((self._folder / "code").read_text())
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Returns the exit code. Raises: TimeoutExpired, after killing it."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self._folder), timeout, *self._output())
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Returns what was written to standard output and error until it ended."""
        self.wait(timeout)
        return self._output()

    def _output(self) -> tuple[str, str]:
        return (self._folder / "out").read_text(), (self._folder / "err").read_text()


class Starter:
    """Starts scripts; the process that is forked begins with the first one."""

    def __init__(self) -> None:
        self._server: subprocess.Popen | None = None
        self._count = 0

    def start(self, script: Path, arguments: Sequence[object], cwd: Path, environment: dict[str, str]) -> Started:
        if self._server is None:
            self._folders = tempfile.TemporaryDirectory(prefix="started_")
            line = [sys.executable, "-m", "tests.warm"]
            self._server = subprocess.Popen(line, stdin=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        folder = Path(self._folders.name) / str(self._count)
        folder.mkdir()
        self._count += 1
        order = {"folder": str(folder), "argv": [str(script), *map(str, arguments)], "cwd": str(cwd)}
        print(json.dumps({**order, "environment": environment}), file=self._server.stdin, flush=True)
        return Started(folder)


def _become(order: dict) -> None:
    """Makes this process one that was started with the order's arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, path in ((0, os.devnull), (1, f"{order['folder']}/out"), (2, f"{order['folder']}/err")):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    sys.argv = order["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


def _write(file: Path, number: int) -> None:
    file.with_suffix(".new").write_text(str(number))
    file.with_suffix(".new").replace(file)


def _serve() -> bool:
    """Forks for every order; returns whether this is a fork, with an order to carry out."""
    folders: dict[int, Path] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)  # a signal just before the wait below must not be missed
    signal.signal(signal.SIGCHLD, lambda *_: None)
    text = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 1000)
        for pid in list(folders):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                _write(folders.pop(pid) / "code", os.waitstatus_to_exitcode(status))
        if 0 not in ready:
            continue
        if not (more := os.read(0, 2**16)):
            return False
        *lines, text = (text + more).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                os.close(woken)
                os.close(wake)
                _become(order)
                return True
            folders[pid] = Path(order["folder"])
            _write(folders[pid] / "pid", pid)


if __name__ == "__main__":
    import torch.utils.tensorboard  # noqa: F401  what the program imports when it needs it

    import main  # noqa: F401

    # a fork returns to here, so that its interpreter ends as one that was started does
    if _serve():
        runpy.run_path(sys.argv[0], run_name="__main__")
