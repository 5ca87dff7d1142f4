"""The process group of the loader workers: a signal to the program is not one to them."""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from data.pipeline import fork_server
from tests.conftest import ROOT, environment
from tests.tools.builders import in_child
from utils.distributed.signals import HANDLED

SIGNALS = tuple(HANDLED)
MODULE = "data.pipeline.worker_group"


ALONE = """
import os, signal, sys
from tests.data.pipeline.test_workers import error_of, monitored
from tests.data.pipeline.troubled import GroupOfWorker

from multiprocessing.resource_tracker import _resource_tracker

loader = monitored(GroupOfWorker(), workers=1, persistent=True)
print(error_of(loader).problem, os.getpgid(0), sep="|")
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), "data.pipeline.worker_group" in sys.modules)
os.kill(_resource_tracker._pid, signal.SIGKILL)
assert error_of(monitored(GroupOfWorker(), workers=1)).subject == "group"
"""


@pytest.mark.parametrize("length", [71, 72, 103])
def test_fault_65_sockets_fit_into_any_temporary_folder(length):
    """Names of sockets have at most 107 bytes, of which multiprocessing takes 32."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))
    folder = root / ("x" * (length - len(str(root)) - 1))
    folder.mkdir()

    def start():
        tempfile.tempdir = str(folder)
        multiprocessing.process.current_process()._config["tempdir"] = None
        fork_server._choose_socket_folder()
        with multiprocessing.connection.Listener(multiprocessing.connection.arbitrary_address("AF_UNIX")) as listener:
            assert len(listener.address) <= 107
        if length > 71:
            shutil.rmtree(multiprocessing.util.get_temp_dir())

    try:
        assert in_child(start) == (0, "")
    finally:
        shutil.rmtree(root)


@pytest.mark.seconds
def test_fault_65_workers_are_in_the_group_of_their_server_and_block_sigterm(tmp_path):
    """In a separate process: another test may have started a fork server here, which all share.

    Nor does a TMPDIR that is too long for the name of a socket matter, or a resource tracker that is killed (62).
    """
    (tmp_path / "data").mkdir()  # as a user's own folder: it must not hide the package
    long = tmp_path / ("long" * 25)
    long.mkdir()
    env = environment(PYTHONPATH=str(ROOT), TMPDIR=str(long))
    run = [sys.executable, "-c", ALONE]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    worker, own_group = first.split("|")
    group, server, blocked = worker.split(" ", 2)
    assert group == server != own_group and blocked == "[15]"
    assert second == "set() False"  # here neither


def test_the_server_survives_a_signal_to_the_group_of_the_program():
    """Also one that arrives while the server starts."""

    def program():
        os.setpgid(0, 0)
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)
        read, write = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        server = os.fork()
        if server == 0:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            os.killpg(os.getppid(), signal.SIGUSR1)  # blocked, still in the program's group
            signal.sigtimedwait([signal.SIGUSR1], 5)
            importlib.import_module(MODULE)
            os.write(write, b"x")
            time.sleep(20)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.read(read, 1)
        for each in SIGNALS:
            os.killpg(0, each)
        time.sleep(0.1)
        assert os.waitpid(server, os.WNOHANG) == (0, 0), "the server died with the program"
        for each in HANDLED:  # of a scheduler, which knows every process
            os.kill(server, each)
        time.sleep(0.1)
        assert os.waitpid(server, os.WNOHANG) == (0, 0), "the server died before the program"
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)

    assert in_child(program) == (0, "")
