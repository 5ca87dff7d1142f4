"""Worker processes are forked from a server with a single thread that has imported the program once.

Forked from the training process, a worker is occasionally created while a thread of gloo or nccl holds a lock of the
interpreter; the child inherits the lock but not the thread, and waits forever.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]  # of the program


def server_context() -> BaseContext:
    """Returns the context that forks from the server, starting it first; where there is none, one that spawns."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # imported once, not by every worker: what the main module has imported of the program
    program = [name for name, module in list(sys.modules.items()) if _is_ours(name, module)]
    context.set_forkserver_preload(["data.pipeline.worker_group", *program])
    # starts first, since it would unblock the signals; it needs no words about semaphores that it removes after a kill
    with _environment(PYTHONWARNINGS="ignore:resource_tracker"):
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    try:  # it inherits the mask, see worker_group.py; a folder data/ where the user stands must not hide the package
        with _environment(PYTHONPATH=str(_ROOT), PYTHONSAFEPATH="1"):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of at least one process; what is still waiting at the end of the block is not done."""
    pool = ProcessPoolExecutor(max(1, workers), server_context(), initializer=exit_with_program)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def exit_with_program() -> None:
    """Ends this worker when the program is gone: its parent is the server, which lives as long as its workers."""
    threading.Thread(target=_wait_for_program, daemon=True).start()


def _wait_for_program() -> None:
    program = multiprocessing.parent_process()
    if program is not None:
        wait([program.sentinel])  # a pipe of which the program has the other end
        os._exit(1)


def _is_ours(name: str, module: Any) -> bool:
    """Returns whether a module is one of the program's packages, and not one of another with the same name."""
    ours = name.partition(".")[0] in ("configs", "data", "models", "tasks", "utils")
    return ours and _ROOT in Path(getattr(module, "__file__", None) or "").parents


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for the processes that the block starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
