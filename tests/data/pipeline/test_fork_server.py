"""The server that forks worker processes: what it imports, and how the processes of a pool end."""

import signal
import time
from concurrent.futures import Future
from types import ModuleType

import pytest
import torch

from data.pipeline import fork_server
from data.pipeline.fork_server import worker_pool
from tests.conftest import ROOT, environment, starter
from tests.data.pipeline.troubled import has_imported


def test_the_server_imports_the_modules_of_this_program_only(tmp_path):
    foreign = ModuleType("utils.foreign")
    foreign.__file__ = str(tmp_path / "utils/foreign.py")
    assert fork_server._is_ours("data.pipeline.fork_server", fork_server)
    assert not fork_server._is_ours("utils.foreign", foreign)
    assert not fork_server._is_ours("utils.nowhere", ModuleType("utils.nowhere"))
    assert not fork_server._is_ours("torch", torch)


@pytest.mark.seconds
def test_a_process_of_a_pool_finds_the_program_imported():
    """Each would otherwise import torch and timm for itself: seconds, at every start of an epoch or evaluation."""
    with worker_pool(0) as pool:
        assert pool.submit(has_imported, "data.pipeline.workers").result(60)


@pytest.mark.seconds
def test_an_exception_ends_a_pool_without_doing_what_is_waiting():
    waiting: list[Future[None]] = []
    with pytest.raises(KeyboardInterrupt), worker_pool(1) as pool:
        waiting += [pool.submit(time.sleep, 0.2) for _ in range(50)]
        raise KeyboardInterrupt
    assert sum(each.cancelled() for each in waiting) >= 40


@pytest.mark.seconds
def test_the_processes_of_a_pool_end_with_the_program():
    """In a process of its own, which is killed; communicate() fails if something of its session is left."""
    job = starter.start(ROOT / "tests/tools/ranks/killed_pool.py", [], ROOT, environment())
    out, err = job.communicate(60)
    assert job.returncode == -signal.SIGKILL, err
    assert out.strip().isdigit()


def test_fault_31_a_worker_prints_its_own_errors_but_no_lost_connection(capsys):
    """multiprocessing prints a traceback if the program is killed while it fetches a batch."""
    for error in (ConnectionResetError("lost"), EOFError("lost"), ValueError("a bug")):
        fork_server._report_unless_disconnected(type(error), error, None)
    assert capsys.readouterr().err == "ValueError: a bug\n"
