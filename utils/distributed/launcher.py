"""Detects when this rank's launcher is gone.

torchrun starts every rank in a separate session, hosts the job's store, and stops the ranks when it exits. If it is
killed, nothing stops them: the store is gone, and ranks still in the rendezvous would wait for it until a timeout.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from utils.errors import DistributedError, report_error

INTERVAL = 0.5  # seconds between checks
NOTICE = 2.0  # seconds after the loss of its store until the launcher's end is noticed
_parent: list[int] = []  # the process that started this rank, if it is torchrun


def watch_launcher(before_exit: Callable[[], None]) -> None:
    """Starts a thread that ends this rank once torchrun is gone; does nothing under another launcher.

    Args: before_exit: called before the process ends.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _parent[:] = [os.getppid()]
        threading.Thread(target=_watch, args=(before_exit,), name="launcher", daemon=True).start()


def wait_if_launcher_is_gone() -> None:
    """Does not return if torchrun is gone, so that `watch_launcher` alone reports it; waits `NOTICE` s to find out."""
    last = time.monotonic() + NOTICE
    while _parent and time.monotonic() < last:
        if os.getppid() != _parent[0]:
            threading.Event().wait()
        time.sleep(0.05)


def _watch(before_exit: Callable[[], None]) -> None:
    while os.getppid() == _parent[0]:
        time.sleep(INTERVAL)
    _end(before_exit)


def _end(before_exit: Callable[[], None]) -> NoReturn:
    problem = f"it was killed: process {_parent[0]} on this machine"
    error = DistributedError("torchrun", problem, "run the same command again to resume")
    code = report_error(error, speak=os.environ.get("LOCAL_RANK", "0") == "0")
    before_exit()
    os._exit(code)
