"""Worker processes, forked from a single-threaded server that has imported the program once.

If a worker is forked from the training process while a gloo or NCCL thread holds a lock of the interpreter, the child
inherits the lock but not the thread, and deadlocks.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import Any

from utils.distributed.signals import HANDLED
from utils.errors import ResourceError

_ROOT = Path(__file__).resolve().parents[2]  # folder of the program
# bytes of the folder's name in a socket's path, which ends like "/pymp-12345678/listener-12345678": the path may have
# 108 with its final zero on Linux, 104 on macOS
_LONGEST = 103 - len("/pymp-12345678/listener-12345678")
_unregister = resource_tracker.unregister
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def server_context() -> BaseContext:
    """Returns a context that forks from the server, started if necessary, or that spawns where this is unsupported.

    Raises: ResourceError if no folder for sockets is found.
    """
    _choose_socket_folder()
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # imported once, not by every worker: the program's modules that the main module has imported
    program = [name for name, module in list(sys.modules.items()) if _is_ours(name, module)]
    context.set_forkserver_preload(["data.pipeline.worker_group", *program, "data.pipeline.server_ready"])
    # the tracker starts first, since that unblocks the signals; its warning of semaphores leaked by a kill is silenced
    _outlive_tracker()
    with _environment(PYTHONWARNINGS="ignore:resource_tracker"):
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:  # the server inherits the mask (worker_group.py); a data/ in the working directory must not hide the package
        with _environment(PYTHONPATH=str(_ROOT), PYTHONSAFEPATH="1"):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of at least one process; cancels pending work at the end of the block.

    Raises: ResourceError if a process of the pool died.
    """
    pool = ProcessPoolExecutor(max(1, workers), server_context(), initializer=exit_with_program)
    try:
        yield pool
    except BrokenProcessPool as e:
        raise ResourceError("--workers", "a worker died, probably for lack of memory", "use fewer") from e
    finally:
        pool.shutdown(cancel_futures=True)


def exit_with_program() -> None:
    """Ends this worker when the program is gone: its parent is the server, which outlives the program.

    SIGTERM ends it only if the program sent it. Schedulers send it to every process of a job, and the program needs its
    workers until it has saved.
    """
    program = multiprocessing.parent_process()
    if program is None:
        return
    sys.excepthook = _report_unless_disconnected
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in later threads, too
    threading.Thread(target=_wait_for_program, args=(program.sentinel, program.pid), daemon=True).start()


def _report_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Replaces `sys.excepthook`, which multiprocessing calls if the program is killed while it fetches a batch."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _wait_for_program(sentinel: int, process: int) -> None:
    """Args: sentinel: a pipe whose other end the program holds; process: the program."""
    if hasattr(signal, "sigtimedwait"):
        while not wait([sentinel], 0):
            received = signal.sigtimedwait({signal.SIGTERM}, 0.5)
            if received is not None and received.si_pid == process:
                break
    else:
        wait([sentinel])
    os._exit(1)


def _choose_socket_folder() -> None:
    """Moves multiprocessing's sockets to a shorter folder if TMPDIR is too long for socket names."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= _LONGEST:
        return
    shorter = next((each for each in _SHORT if os.access(each, os.W_OK | os.X_OK)), None)
    if shorter is None:
        problem = f"too long for the sockets of worker processes, {_LONGEST} bytes are allowed: {folder}"
        raise ResourceError("TMPDIR", problem, "set a shorter one")
    tempfile.tempdir = shorter
    try:
        util.get_temp_dir()  # created by the first call
    finally:
        tempfile.tempdir = folder


def _outlive_tracker() -> None:
    """Lets the program continue silently with a new resource tracker if the old one is killed.

    The new one has no record of the old one's semaphores and would print a traceback for each that is released.
    """
    warnings.filterwarnings("ignore", "resource_tracker: process died")
    resource_tracker.unregister = _register_and_unregister


def _register_and_unregister(name: Any, rtype: str) -> None:
    with suppress(OSError):  # it was killed just now
        resource_tracker.register(name, rtype)
        _unregister(name, rtype)


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
