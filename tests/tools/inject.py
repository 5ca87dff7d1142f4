"""Runs main.py with faults injected from outside: python tests/tools/inject.py FAULTS [arguments of main.py]

FAULTS is a list such as "step:7:kill:1,save:3:full": at the 7th update rank 1 is killed, at the 3rd system call of
saving the disk is full. Points: imports, rendezvous, start, step, evaluation, epoch (between two epochs), snapshot (the
state is copied to be saved), draw (the curves), save (all system calls of the thread that saves), fsync, replace,
symlink, unlink (single ones). Actions: kill, kill=PROCESS (a loader worker, its fork server, the resource tracker or
the launcher: worker, server, tracker, launcher), term, hup, int, usr1, stop (SIGSTOP), raise, full (no space), nan and
change (one weight), sleep=SECONDS (at every later call). Without a rank all ranks do it; "+N" after the count: only in
restart N of torchrun. For tests/tools/soak.py and the tests.
"""

import builtins
import errno
import functools
import io
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

_SIGNALS = {
    "kill": "SIGKILL",
    "term": "SIGTERM",
    "hup": "SIGHUP",
    "int": "SIGINT",
    "usr1": "SIGUSR1",
    "stop": "SIGSTOP",
}
_SLOW = "configs.options"  # the first module that the program imports once it handles signals


@dataclass
class Fault:
    """`count`: at which call of `point`; `rank` and `attempt` -1 for any."""

    point: str
    count: int
    action: str
    rank: int = -1
    attempt: int = -1

    @staticmethod
    def parse(text: str) -> "Fault":
        point, count, action, *rank = text.split(":")
        count, _, attempt = count.partition("+")
        return Fault(point, int(count), action, int(rank[0]) if rank else -1, int(attempt) if attempt else -1)

    def applies(self) -> bool:
        """Returns whether it concerns this process."""
        here = (int(os.environ.get("RANK", 0)), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
        return self.rank in (-1, here[0]) and self.attempt in (-1, here[1])


class Injector:
    """Counts the calls of every point and acts at the chosen ones."""

    def __init__(self, faults: list[Fault]):
        self._faults = [fault for fault in faults if fault.applies()]
        self._counts: dict[str, int] = {}

    def reached(self, point: str, subject: Any = None) -> None:
        """Counts a call. Args: subject: the optimizer at an update."""
        self._counts[point] = self._counts.get(point, 0) + 1
        for fault in self._faults:
            if fault.point != point:
                continue
            if self._counts[point] == fault.count:
                self._act(fault.action, subject)
            elif self._counts[point] > fault.count and fault.action.startswith("sleep="):
                time.sleep(float(fault.action[6:]))

    def _act(self, action: str, subject: Any) -> None:
        action, _, other = action.partition("=") if action.startswith("kill=") else (action, "", "")
        process = process_of(other) if other else os.getpid()
        if process is None:  # it is not there yet
            return
        print(f"injected {action}", *filter(None, [other]), file=sys.stderr, flush=True)
        if action in _SIGNALS:
            os.kill(process, getattr(signal, _SIGNALS[action]))
        elif action == "raise":
            raise RuntimeError("injected")
        elif action == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif action == "change":
            subject.param_groups[0]["params"][0].data.view(-1)[0] += 1e-3
        elif action == "nan":
            subject.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")

    def around(self, owner: Any, name: str, *points: str, saver_only: bool = False) -> None:
        """Replaces `owner.name` by a function that counts first."""
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not saver_only or threading.current_thread().name == "saver":
                for point in points:
                    self.reached(point, args[0] if args else None)
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    def watch_writes(self) -> None:
        """Counts every write to files that the saving thread opens."""
        injector, original = self, io.open

        class Counted(io.FileIO):
            def write(self, data: Any) -> int:
                injector.reached("save")
                return super().write(data)

        def counting(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name != "saver" or "w" not in mode:
                return original(file, mode, *args, **kwargs)
            self.reached("save")
            raw = io.BufferedWriter(Counted(file, "w"))
            return raw if "b" in mode else io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace")

        builtins.open = io.open = counting


def process_of(name: str) -> int | None:
    """Returns a process that belongs to this rank, None if it has not been started."""
    if name == "launcher":
        return os.getppid()
    if name == "worker":
        workers = multiprocessing.active_children()
        return workers[-1].pid if workers else None
    from multiprocessing import forkserver, resource_tracker

    return {"server": forkserver._forkserver._forkserver_pid, "tracker": resource_tracker._resource_tracker._pid}[name]


def patch_library(injector: Injector) -> None:
    """Counts the calls of every point; imports the library."""
    import torch

    from tasks.classification import metrics
    from utils.logs import curves
    from utils.runs import resume, saver, session

    injector.around(torch.distributed, "rendezvous", "rendezvous")
    injector.around(resume, "find_start", "start")
    injector.around(torch.optim.AdamW, "step", "step")
    injector.around(metrics.AccuracyCounter, "add", "evaluation")
    injector.around(session, "write_summary", "epoch")
    injector.around(saver, "snapshot", "snapshot")
    injector.around(curves, "draw_curves", "draw")
    for name in ("fsync", "replace", "symlink", "unlink"):
        injector.around(os, name, "save", name, saver_only=True)
    injector.watch_writes()


class AtImports:
    """Patches the library when the program begins to import it."""

    def __init__(self, injector: Injector):
        self._injector = injector

    def find_spec(self, name: str, *_: Any) -> None:
        if name == _SLOW and self in sys.meta_path:
            sys.meta_path.remove(self)
            self._injector.reached("imports")
            patch_library(self._injector)


def main(argv: list[str]) -> None:
    """Runs the program as if it had been started itself, with faults."""
    injector = Injector([Fault.parse(each) for each in filter(None, argv[0].split(","))])
    if _SLOW in sys.modules:
        patch_library(injector)
    else:
        sys.meta_path.insert(0, AtImports(injector))
    sys.argv = [str(ROOT / "main.py"), *argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
