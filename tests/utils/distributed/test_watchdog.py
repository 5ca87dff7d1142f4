"""The watchdogs of two ranks in one process, which share a store; what they end is a forked child."""

import os
import threading
import time

import pytest
import torch.distributed as dist

from tests.tools.builders import LostStore, in_child
from utils.distributed import watchdog as module
from utils.distributed.watchdog import Watchdog, format_stacks
from utils.distributed.world import World
from utils.errors import ConfigError, DistributedError, TerminatedError


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """A second is a twentieth of one."""
    for name, seconds in (("INTERVAL", 0.02), ("SILENCE", 0.2), ("SUSPICIOUS", 3.0), ("PATIENCE", 0.3)):
        monkeypatch.setattr(module, name, seconds)


def pair(**more):
    """Two ranks that do not watch yet."""
    store = dist.HashStore()
    return [Watchdog(dist.PrefixStore("watchdog", store), rank, 2, **more) for rank in (0, 1)]


def wait_here():
    """Until a watchdog ends the process."""
    time.sleep(20)


def test_the_alarm_of_another_rank_ends_this_one_with_its_code():
    def start():
        one, other = pair()
        one.before_exit = lambda: module.report_error(ConfigError("X", "the save is awaited"), speak=True)
        one.start()
        other.raise_alarm(6)
        wait_here()

    assert in_child(start) == (6, "error: X: the save is awaited\n")


def test_a_stopped_watchdog_ends_nothing():
    one, other = pair()
    one.start()
    one.stop()
    assert not one.is_alive()
    other.raise_alarm(6)
    time.sleep(0.1)  # this process is still there


def test_a_rank_that_claimed_the_error_reports_it_although_another_ends_the_job_meanwhile():
    def start():
        one, other = pair()
        one.start()

        def claim(topic):
            other._store.set("code", "6")
            time.sleep(0.2)
            return True

        one.claim = claim
        os._exit(World(rank=0, size=2, watchdog=one).end_together(ConfigError("X", "wrong"), debug=False))

    assert in_child(start) == (6, "error: X: wrong\n")


def test_all_ranks_end_with_the_code_of_the_first_failure():
    one, other = pair()
    codes = []
    thread = threading.Thread(target=lambda: codes.append(one.raise_alarm(4)))
    thread.start()
    while not one._store.check(["code"]):
        time.sleep(0.01)
    assert other.raise_alarm(6) == 4
    thread.join()
    assert codes == [4]


def test_a_failed_rank_does_not_wait_for_those_that_are_gone():
    begun = time.monotonic()
    assert pair()[0].raise_alarm(4) == 4
    assert 0.3 <= time.monotonic() - begun < 2


def test_without_a_store_the_code_is_ones_own():
    one, _ = pair()
    one._store = LostStore()
    assert one.raise_alarm(4) == 4


def test_a_topic_is_claimed_once():
    one, other = pair()
    assert [other.claim("error"), one.claim("error"), one.claim("other")] == [True, False, True]


def test_fault_26_ranks_without_a_heartbeat_are_named():
    one, _ = pair()
    one.tick("epoch 1, update 7")
    who = one._store.get("who/1").decode()
    error = one.explain(RuntimeError("Connection reset by peer"))
    assert isinstance(error, DistributedError) and ", process " in who
    assert error.subject == "rank 1" and "same command" in error.remedy
    assert "epoch 1, update 7" in error.problem and who in error.problem


def test_a_rank_that_has_ended_is_not_missed():
    """The main rank may still write its last checkpoint."""
    one, other = pair()
    other.leave()
    assert one.explain(RuntimeError("x")).subject == "rank 0"


def test_fault_61_if_the_store_is_gone_its_host_is_named():
    one, _ = pair()
    one._store = LostStore()
    assert one.explain(RuntimeError("Connection reset by peer")).subject == "MASTER_ADDR"


def test_if_all_ranks_are_there_the_network_is_to_blame():
    one, other = pair()
    other.start()
    error = one.explain(RuntimeError("Connection reset by peer\nmore"))
    other.stop()
    assert error.subject == "rank 0" and "network" in error.remedy
    assert "at the start (Connection reset by peer)" in error.problem


def test_fault_26_a_rank_that_disappears_is_noticed_without_any_exchange():
    def start():
        module.SUSPICIOUS = 0.3
        one, _ = pair()
        one.start()
        one.tick("epoch 0, update 3")
        wait_here()

    code, err = in_child(start)
    assert code == 5 and err.startswith("error: rank 1: ") and "at epoch 0, update 3" in err


def test_a_long_update_is_no_reason_to_end():
    def start():
        module.SUSPICIOUS, module.SILENCE = 0.05, 0.4
        both = pair()
        for each in both:
            each.start()
            each.tick("epoch 0, update 3")
        time.sleep(1)
        assert all(each.is_alive() for each in both)

    assert in_child(start) == (0, "")


def test_fault_27_a_hang_shows_the_stacks_of_all_ranks_that_respond():
    def start():
        both = pair(timeout=0.3)
        for each in both:
            each.start()
            each.tick(f"update {7 + each._rank}")
        wait_here()

    code, err = in_child(start)
    lines = err.splitlines()
    assert code == 5 and err.count("in wait_here") == 2
    for rank in (0, 1):
        (line,) = [line for line in lines if line.startswith(f"rank {rank} (")]
        assert line.endswith(f") at update {7 + rank}")
    assert lines[-1].startswith("error: TIMEOUT_MINUTES: ") and sum(line.startswith("error: ") for line in lines) == 1
    assert "0.3 seconds at update " in lines[-1] and "all ranks respond" in lines[-1]


def test_fault_27_a_rank_that_does_not_respond_is_named():
    def start():
        one, other = pair(timeout=0.3)
        other.tick("update 7")  # its thread does not run: the process was stopped
        one.start()
        one.tick("update 8")
        wait_here()

    code, err = in_child(start)
    lines = err.splitlines()
    (line,) = [line for line in lines if line.startswith("rank 1 (")]
    assert code == 5 and line.endswith(") does not respond") and err.count("in wait_here") == 1
    assert lines[-1].startswith("error: TIMEOUT_MINUTES: ") and "0.3 seconds at update 8" in lines[-1]
    assert line in lines[-1]


def test_fault_27_a_rank_that_has_not_begun_shows_its_stacks_too():
    def start():
        both = pair(timeout=0.3)
        for each in both:
            each.start()
        both[0].tick("update 8")
        wait_here()

    code, err = in_child(start)
    assert code == 5 and err.count("in wait_here") == 2 and "all ranks respond" in err


def test_before_the_first_progress_nothing_counts_as_a_hang():
    one, _ = pair(timeout=0.05)
    one.start()
    time.sleep(0.3)
    assert one.is_alive() and one.position == "the start"
    one.stop()


@pytest.mark.parametrize("gone", [False, True])
def test_fault_23_a_signal_before_training_ends_all_ranks_unless_one_is_gone(gone):
    """torchrun also sends SIGTERM when a rank is gone, which is then the reason."""

    def start():
        one, other = pair()
        one.start()
        if not gone:
            other.start()
        one.aborting = TerminatedError("SIGTERM", "terminated")
        wait_here()

    code, err = in_child(start)
    wanted = "error: rank 1: " if gone else "error: SIGTERM: terminated\n"
    assert code == (5 if gone else 75) and err.startswith(wanted) and err.count("error: ") == 1


def test_fault_26_the_loss_of_the_store_is_the_loss_of_the_rank_that_hosts_it():
    def start():
        class Impatient(threading.Event):
            def wait(self, timeout=None):
                return super().wait(min(timeout or 0.1, 0.1))

        module.threading.Event = Impatient
        one, _ = pair()
        one.tick("epoch 2, update 9")
        one._store = LostStore()
        one.start()
        wait_here()

    code, err = in_child(start)
    assert code == 5
    assert err.startswith("error: MASTER_ADDR: ") and "epoch 2, update 9" in err and "hosts the store" in err


def test_stacks_are_those_of_the_other_threads_by_name():
    stopped = threading.Event()
    thread = threading.Thread(target=stopped.wait, name="waiting one")
    thread.start()
    text = format_stacks()
    stopped.set()
    thread.join()
    assert "  thread waiting one:\n" in text and "in wait" in text
    assert "test_stacks_are_those" not in text
