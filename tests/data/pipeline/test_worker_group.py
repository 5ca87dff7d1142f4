"""The process group of the loader workers: a signal to the program is not one to them."""

import importlib
import os
import signal
import sys
import time

import pytest

from tests.builders import in_child
from tests.data.pipeline.test_workers import error_of, monitored
from tests.data.pipeline.troubled import GroupOfWorker

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
MODULE = "data.pipeline.worker_group"


@pytest.mark.seconds
def test_workers_are_in_the_group_of_their_server_and_block_nothing():
    group, server, blocked = str(error_of(monitored(GroupOfWorker(), workers=1))).split(" ", 2)
    assert group == server and int(group) != os.getpgid(0) and blocked == "[]"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)  # here neither
    assert MODULE not in sys.modules


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
        os.kill(server, signal.SIGTERM)  # one of its own still ends it
        assert os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) == -signal.SIGTERM

    assert in_child(program) == (0, "")
