"""Worker processes, forked from a single-threaded server that has imported the program once.

If a worker is forked from the training process while a gloo or NCCL thread holds a lock of the interpreter, the child
inherits the lock but not the thread, and deadlocks.
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
    """Returns a context that forks from the server, which it starts if necessary; one that spawns where unsupported."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # imported once, not by every worker: the program's modules that the main module has imported
    program = [name for name, module in list(sys.modules.items()) if _is_ours(name, module)]
    context.set_forkserver_preload(["data.pipeline.worker_group", *program])
    # started first, since it would unblock the signals; silence its warning about semaphores leaked by a kill
    with _environment(PYTHONWARNINGS="ignore:resource_tracker"):
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    try:  # it inherits the mask, see worker_group.py; a folder data/ in the working directory must not hide the package
        with _environment(PYTHONPATH=str(_ROOT), PYTHONSAFEPATH="1"):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of at least one process; cancels pending work at the end of the block."""
    pool = ProcessPoolExecutor(max(1, workers), server_context(), initializer=exit_with_program)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def exit_with_program() -> None:
    """Ends this worker when the program is gone: its parent is the server, which outlives the program."""
    threading.Thread(target=_wait_for_program, daemon=True).start()


def _wait_for_program() -> None:
    program = multiprocessing.parent_process()
    if program is not None:
        wait([program.sentinel])  # a pipe whose other end the program holds
        os._exit(1)


def _is_ours(name: str, module: Any) -> bool:
    """Returns whether a module belongs to the program, and not to another package of the same name."""
    ours = name.partition(".")[0] in ("configs", "data", "models", "tasks", "utils")
    return ours and _ROOT in Path(getattr(module, "__file__", None) or "").parents


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for processes started in the block."""
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
