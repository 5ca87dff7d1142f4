"""A launcher that is killed; tests/test_survival.py kills torchrun."""

import os
import signal
import time

import pytest

from tests.tools.builders import in_child
from utils.distributed import launcher as module
from utils.distributed.launcher import wait_if_launcher_is_gone, watch_launcher


def orphan(run, **variables):
    """Calls `run` in a child of a child that is killed; returns the exit code, and what it said.

    Args: run: takes a function to call once it watches.
    """

    def start():
        read, write = os.pipe()
        launcher = os.fork()
        if launcher == 0:
            os.environ.update(variables)
            child = os.fork()
            if child == 0:
                run(lambda: os.write(write, b"."))
                os._exit(0)
            os.close(read)
            time.sleep(60)
        os.close(write)
        os.read(read, 1)  # it watches
        os.kill(launcher, signal.SIGKILL)
        os.read(read, 1)  # until the last process that has the other end is gone

    return in_child(start)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 0.02)


@pytest.mark.parametrize(("local_rank", "lines"), [("0", 1), ("1", 0)])
def test_fault_61_a_rank_ends_with_its_launcher_and_one_rank_says_so(local_rank, lines, tmp_path):
    def run(ready):
        watch_launcher(lambda: (tmp_path / "saved").touch())
        ready()
        time.sleep(0.4)
        wait_if_launcher_is_gone()  # while the thread reports it
        (tmp_path / "went on").touch()

    code, err = orphan(run, TORCHELASTIC_RUN_ID="x", LOCAL_RANK=local_rank)
    assert code == 0 and err.count("error: torchrun: ") == err.count("\n") == lines, err
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_without_torchrun_a_parent_may_end(tmp_path):
    def run(ready):
        watch_launcher(lambda: (tmp_path / "saved").touch())
        ready()
        time.sleep(0.4)
        wait_if_launcher_is_gone()
        (tmp_path / "went on").touch()

    assert orphan(run) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["went on"]
