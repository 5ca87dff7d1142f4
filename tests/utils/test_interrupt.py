"""Ctrl-C, with real signals to real processes."""

import os
import signal

import pytest

from utils.interrupt import Interrupt


@pytest.fixture
def interrupt():
    """Listens to SIGINT; pytest's own handler is back afterwards."""
    own = signal.getsignal(signal.SIGINT)
    started = Interrupt()
    started.listen()
    yield started
    signal.signal(signal.SIGINT, own)


def press():
    signal.raise_signal(signal.SIGINT)


def test_a_signal_is_remembered_until_the_next_check(interrupt):
    interrupt.check()
    press()
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


def test_a_guarded_loop_ends_between_two_items(interrupt):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for item in interrupt.guard(range(5)):
            seen.append(item)
            if item == 2:
                press()
            seen.append("done")
    assert seen == [0, "done", 1, "done", 2, "done"]


def test_a_guarded_iterable_can_be_iterated_again(interrupt):
    guarded = interrupt.guard([1, 2])
    assert list(guarded) == list(guarded) == [1, 2]


def test_fault_25_a_second_signal_ends_the_process_at_once():
    pid = os.fork()
    if pid == 0:
        Interrupt().listen()
        press()  # is only remembered
        press()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
