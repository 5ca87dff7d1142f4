"""Starts the program by forking a process that has already imported it, which saves the imports of a fresh start.

What a run does afterwards is the same: the script is executed as `__main__`, with its own arguments, environment,
working folder, output and session. Its fork server is forked in the same way. What belongs to the start itself needs a
fresh one: torchrun, signals before the imports, variables that a library reads when it is imported, and the seed of
hashes, which differs between processes only there: every kind of run has a test with fresh starts.
"""

import ast
import atexit
import gc
import json
import os
import re
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import forkserver, util
from pathlib import Path
from typing import NoReturn, TypeVar

from utils.distributed.signals import HANDLED

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


class Started:
    """A started program, with the methods of subprocess.Popen that tests use; its output goes to files."""

    def __init__(self, folder: Path, server: subprocess.Popen) -> None:
        self._folder, self._server = folder, server
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        return self._wait_for(lambda: self._number("pid"), 60)

    def poll(self) -> int | None:
        """Returns the exit code, minus the signal that ended it, or None while it runs."""
        if self.returncode is None:
            gone = self._server.poll() is not None  # before the look: it may have written the code as its last
            self.returncode = self._number("code")
            assert self.returncode is not None or not gone, "the server of warm.py has ended, see its output"
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Returns the exit code. Raises: TimeoutExpired, after killing it."""
        try:
            return self._wait_for(self.poll, timeout)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            raise

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Returns what it and the processes that it started wrote until they ended; they must end soon after it."""
        self.wait(timeout)
        self._wait_for(lambda: members(self.pid) == [] or None, 20)
        return self.output()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _number(self, name: str) -> int | None:
        file = self._folder / name
        return int(file.read_text()) if file.exists() else None

    @property
    def peak_memory(self) -> int:
        """Resident bytes of the process, or of the largest that it started, once it has ended."""
        return 1024 * self._wait_for(lambda: self._number("peak"), 10)

    def output(self) -> tuple[str, str]:
        """Returns what it wrote so far."""
        return tuple((self._folder / name).read_text(errors="replace") for name in ("out", "err"))  # type: ignore[return-value]

    def _wait_for(self, found: Callable[[], T | None], timeout: float) -> T:
        deadline = time.monotonic() + timeout
        while (value := found()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self._folder), timeout, *self.output())
            time.sleep(0.005)
        return value


def members(session: int) -> list[int]:
    """Returns the processes of a session, without those that have ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(own) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


class Starter:
    """Starts scripts; the process that is forked begins with the first one."""

    def __init__(self) -> None:
        self._server: subprocess.Popen | None = None
        self._count = 0
        self._lock = threading.Lock()

    def start(self, script: Path, arguments: Sequence[object], cwd: Path, environment: dict[str, str]) -> Started:
        with self._lock:
            if self._server is None or self._server.poll() is not None:
                self._folder = Path(tempfile.mkdtemp(prefix="started_"))
                line = [sys.executable, "-m", "tests.tools.warm", str(self._folder)]
                neutral = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
                self._server = subprocess.Popen(line, stdin=subprocess.PIPE, text=True, cwd=ROOT, env=neutral)
            folder = self._folder / str(self._count)
            folder.mkdir()
            for name in ("out", "err"):
                (folder / name).touch()
            self._count += 1
            order = {"folder": str(folder), "argv": [str(script), *map(str, arguments)], "cwd": str(cwd)}
            print(json.dumps({**order, "environment": environment}), file=self._server.stdin, flush=True)
            return Started(folder, self._server)

    def close(self) -> None:
        """Ends the process, and all that it started."""
        if self._server is not None:
            self._server.stdin.close()  # type: ignore[union-attr]
            self._server.wait(30)


def free_port() -> int:
    """Returns a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def rank_variables(rank: int, size: int, port: int) -> dict[str, str]:
    """Returns what torchrun tells a rank of one machine."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port} if size > 1 else {}
    return {name: str(value) for name, value in {**place, **address}.items()}


def _become(order: dict) -> None:
    """Makes this process one that was started with the order's arguments."""
    import numpy

    numpy.random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, path in ((0, os.devnull), (1, f"{order['folder']}/out"), (2, f"{order['folder']}/err")):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    sys.argv = order["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    global _spare
    _spare = _Spare()


_spare: "_Spare | None" = None  # its end of the socket lives as long as the run


class _Spare:
    """A fork of a run before it has threads, which becomes its fork server when it starts one."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if not self._pid:
            self._ours.close()
            self._wait(theirs)
        theirs.close()
        self._spawn, util.spawnv_passfds = util.spawnv_passfds, self._take

    def _take(self, path: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
        """Replaces `spawnv_passfds`, which starts the fork server and the resource tracker."""
        numbers = ", ".join(map(str, descriptors))
        found = re.fullmatch(rf".*forkserver import main; main\({numbers}, (\[.*\]), \*\*(.*)\)", arguments[-1])
        if found is None:
            return self._spawn(path, arguments, descriptors)
        util.spawnv_passfds = self._spawn  # a second server is started as always
        preload, _ = map(ast.literal_eval, found.groups())
        mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        order = {"preload": preload, "environment": dict(os.environ), "mask": mask, "cwd": os.getcwd()}
        text = json.dumps(order).encode()
        socket.send_fds(self._ours, [struct.pack("q", len(text))], list(descriptors))
        self._ours.sendall(text)
        return self._pid

    def _wait(self, theirs: socket.socket) -> NoReturn:
        """Becomes the server, or ends with the run."""
        for each in HANDLED:
            signal.signal(each, signal.SIG_IGN)
        head, descriptors, _, _ = socket.recv_fds(theirs, 8, 2)
        if not head:
            os._exit(0)
        order = json.loads(theirs.recv(struct.unpack("q", head)[0], socket.MSG_WAITALL))
        theirs.close()
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["cwd"])
        signal.pthread_sigmask(signal.SIG_SETMASK, order["mask"])
        for each in HANDLED:
            signal.signal(each, signal.SIG_DFL)
        with suppress(SystemExit):
            forkserver.main(*descriptors, order["preload"])
        os._exit(0)


def _write(file: Path, number: int) -> None:
    file.with_suffix(".new").write_text(str(number))
    file.with_suffix(".new").replace(file)


def _reap(folders: dict[int, Path]) -> None:
    """Notes the exit codes of those that ended; a pid is not given to others before its code is there."""
    for pid, folder in list(folders.items()):
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            continue
        _write(folder / "code", ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
        _, _, usage = os.wait4(pid, 0)
        _write(folder / "peak", usage.ru_maxrss)
        del folders[pid]


def _serve(folder: Path) -> bool:
    """Forks for every order; returns whether this is a fork, with an order to carry out."""
    folders: dict[int, Path] = {}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the tests end first, then this process
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)  # a signal just before the wait below must not be missed
    signal.signal(signal.SIGCHLD, lambda *_: None)
    text = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 1000)
        _reap(folders)
        if 0 not in ready:
            continue
        if not (more := os.read(0, 2**16)):
            break
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
    for pid in [member for session in folders for member in members(session)]:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _run(script: str) -> None:
    """Runs a script and ends this process: threads and exit handlers as always, then without unloading the modules.

    Unloading writes to every page that the fork shares, for 0.7 s.
    """
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    else:
        code = 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import sklearn.metrics  # noqa: F401  what the program imports when it needs it
    import torch.utils.tensorboard  # noqa: F401

    import main  # noqa: F401
    from utils.pictures import new_figure

    new_figure(1, 1)  # finds the fonts
    gc.freeze()  # a collection in a fork would copy every page of the modules
    if _serve(Path(sys.argv[1])):
        _run(sys.argv[0])
