"""Signals, with real ones to real processes; several ranks in one process are connected by gloo."""

import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.tools.builders import in_child
from utils.distributed import signals
from utils.distributed.signals import HANDLED, MOVED, Decision, Interrupt
from utils.distributed.world import World
from utils.errors import TerminatedError

# what schedulers send before they end a job
SENT = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2, signal.SIGXCPU)


@pytest.fixture(autouse=True)
def own_handlers():
    """pytest's own handlers are back afterwards."""
    before = {each: signal.getsignal(each) for each in HANDLED}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def interrupt():
    """That of a single process which trains."""
    started = Interrupt().install()
    started.defer()
    return started


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        *((each, 75, f"error: {each.name}: terminated (run the same command again to resume)\n") for each in SENT),
        (signal.SIGINT, 130, "error: interrupted\n"),
    ],
)
def test_before_training_a_signal_ends_the_process_with_one_line(monkeypatch, number, code, line):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def start():
        Interrupt().install()
        signal.raise_signal(signal.SIGUSR1)  # there is nothing to save
        signal.raise_signal(number)

    assert in_child(start) == (code, line)
    monkeypatch.setenv("RANK", "1")
    assert in_child(start) == (code, "")  # rank 0 speaks


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_process_that_is_blocked_in_native_code(monkeypatch, number, code):
    monkeypatch.setattr(signals, "BLOCKED", 0.1)

    def start():
        Interrupt().install().end_if_blocked()
        threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), number)).start()
        dist.HashStore().get("what nobody sets")  # for minutes

    ended, err = in_child(start)
    assert ended == code and err.count("\n") == 1 and err.startswith("error: "), err


def test_a_signal_that_was_handled_is_not_handled_again(monkeypatch):
    """Once training has begun, it is only remembered."""
    monkeypatch.setattr(signals, "BLOCKED", 0.05)

    def start():
        started = Interrupt().install()
        started.end_if_blocked()
        started.defer()
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert started.decide(1) == Decision(signal.SIGTERM)

    assert in_child(start) == (0, "")


def test_fault_23_a_signal_that_is_ignored_from_the_start_stays_ignored():
    """nohup ignores SIGHUP."""

    def start():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        started = Interrupt().install()
        signal.raise_signal(signal.SIGHUP)
        started.defer()
        signal.raise_signal(signal.SIGHUP)
        assert started.decide(1) == Decision()

    assert in_child(start) == (0, "")


def test_fault_25_a_second_signal_ends_the_process_at_once():
    def start():
        started = Interrupt().install()
        started.defer()
        signal.raise_signal(signal.SIGINT)  # is only remembered
        signal.raise_signal(signal.SIGINT)

    assert in_child(start) == (130, "")


def test_fault_25_ctrl_c_twice_ends_a_process_that_was_terminated_before():
    def start():
        started = Interrupt().install()
        started.defer()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            signal.raise_signal(number)

    assert in_child(start) == (130, "")


@pytest.mark.parametrize("number", SENT)
def test_fault_23_what_schedulers_send_stops_at_the_next_update(interrupt, number):
    signal.raise_signal(number)
    assert interrupt.decide(1) == Decision(stop=number)
    assert interrupt.error(number).subject == number.name


def test_fault_63_a_folder_that_was_moved_stops_unless_a_signal_did(interrupt):
    interrupt.request_stop()
    assert interrupt.decide(1) == Decision(stop=MOVED)
    other = Interrupt()
    other._stop = signal.SIGTERM
    other.request_stop()
    assert other.decide(1) == Decision(stop=signal.SIGTERM)


def test_sigterm_twice_is_sigterm_once(interrupt):
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
    assert interrupt.decide(1) == Decision(stop=signal.SIGTERM)


def test_a_signal_is_remembered_until_the_next_update(interrupt):
    assert interrupt.decide(1) == Decision()
    signal.raise_signal(signal.SIGUSR1)
    assert interrupt.decide(2) == Decision(save=True)
    assert interrupt.decide(3) == Decision()  # saved once
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGUSR1)
    assert interrupt.decide(4) == Decision(signal.SIGTERM, True)


def test_what_came_before_training_is_not_a_wish_to_save():
    started = Interrupt().install()
    signal.raise_signal(signal.SIGUSR1)
    started.defer()
    assert started.decide(1) == Decision()


def test_the_error_of_a_signal_says_what_was_saved_and_how_to_go_on():
    error = Interrupt().error
    terminated = error(signal.SIGTERM, "the state after update 5 is saved")
    assert isinstance(terminated, TerminatedError) and terminated.exit_code == 75
    assert terminated.subject == "SIGTERM" and "the state after update 5 is saved" in terminated.problem
    assert "run the same command again" in terminated.remedy
    assert error(signal.SIGTERM).args == ("SIGTERM", "terminated", terminated.remedy)
    interrupted = error(signal.SIGINT, "saved")
    assert isinstance(interrupted, KeyboardInterrupt) and str(interrupted) == f"saved ({terminated.remedy})"
    assert error(signal.SIGINT).args == ()


def test_at_the_end_nothing_disturbs(interrupt):
    signal.signal(signal.SIGUSR1, handler := lambda *_: None)  # of somebody else
    interrupt.ignore()
    for each in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(each)
    assert interrupt.decide(1) == Decision() and signal.getsignal(signal.SIGUSR1) == handler


def test_an_evaluation_ends_between_two_batches(interrupt):
    seen = []
    for item in interrupt.interruptible(range(5)):
        if item == 2:
            signal.raise_signal(signal.SIGTERM)
        seen.append(item)
    assert seen == [0, 1, 2] and interrupt.stopped_early and interrupt.stop_of_evaluation() == signal.SIGTERM


def test_an_evaluation_that_was_complete_is_not_cut_short(interrupt):
    guarded = interrupt.interruptible([1, 2])
    assert list(guarded) == list(guarded) == [1, 2]
    for item in guarded:
        if item == 2:
            signal.raise_signal(signal.SIGTERM)
    assert not interrupt.stopped_early and interrupt.stop_of_evaluation() == 0
    assert interrupt.decide(1) == Decision(stop=signal.SIGTERM)  # it is not forgotten


def test_the_watchdog_ends_a_job_that_does_not_train_yet_and_hears_of_progress():
    watchdog = SimpleNamespace(aborting=None, stopping=False, ticks=[])
    watchdog.tick = watchdog.ticks.append
    started = Interrupt().install()
    started.join(World(1, 2, store=dist.HashStore(), watchdog=watchdog))
    signal.raise_signal(signal.SIGTERM)
    assert isinstance(watchdog.aborting, TerminatedError) and not watchdog.stopping
    watchdog.aborting = None
    started = Interrupt().install()
    started.join(World(1, 2, store=dist.HashStore(), watchdog=watchdog))
    started.defer()
    signal.raise_signal(signal.SIGTERM)
    assert watchdog.aborting is None and watchdog.stopping
    assert list(started.interruptible("ab")) == ["a"]
    assert watchdog.ticks == ["batch 0 of an evaluation", "batch 1 of an evaluation"]


@dataclass(frozen=True)
class Beside(World):
    """One of several ranks in this process; it gathers what another one is said to have sent."""

    theirs: list[float] = field(default_factory=lambda: [0.0, 0.0])
    group: Any = None

    def gather(self, values):
        return torch.stack([values, torch.tensor(self.theirs)])

    def begin_maximum(self, values):
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        return self.group.allreduce([values], options)


def ranks_of(count=2, **more):
    """Ranks that train, connected by gloo."""
    store = dist.HashStore()

    def connect(rank):
        return dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, count, timedelta(seconds=20))

    made = []
    with ThreadPoolExecutor(count) as pool:
        for rank, group in enumerate(pool.map(connect, range(count))):
            made.append(Interrupt())
            made[-1].join(Beside(rank, count, store=dist.PrefixStore("world", store), group=group, **more))
            made[-1].defer()
    return made


def receive(rank, number):
    """Sends a signal to one of the ranks."""
    rank.install()
    signal.raise_signal(number)


def decisions(ranks, sent, updates=12, seed=0):
    """What each rank decides after each update, in any order. Args: sent: [(update, rank, signal)]."""
    draw, found = random.Random(seed), [[] for _ in ranks]
    for update in range(1, updates + 1):
        for rank in draw.sample(range(len(ranks)), len(ranks)):
            for when, who, number in sent:
                if (when, who) == (update, rank):
                    receive(ranks[who], number)
            found[rank].append(ranks[rank].decide(update))
    return found


@pytest.mark.parametrize("who", [0, 1, 2])
def test_all_ranks_decide_alike_whichever_is_asked_and_asks_first(who):
    sent = [(2, who, signal.SIGUSR1), (5, who, signal.SIGUSR1), (7, who, signal.SIGTERM)]
    for seed in range(3):
        ranks = ranks_of(3)
        found = decisions(ranks, sent, updates=8, seed=seed)
        assert found[0] == found[1] == found[2]
        saved = [update for update, each in enumerate(found[0], start=1) if each.save]
        assert saved == [3, 6] and found[0][-1] == Decision(signal.SIGTERM)  # one update later
        assert not any(each.stop for each in found[0][:-1])
        assert not any(rank._pending for rank in ranks)  # when they leave


def test_one_signal_to_all_ranks_is_one_decision():
    """A launcher signals every rank; the ranks hear of it at different times."""
    sent = [(3, 0, signal.SIGTERM), (3, 1, signal.SIGINT), (3, 1, signal.SIGUSR1), (4, 2, signal.SIGTERM)]
    for seed in range(3):
        found = decisions(ranks_of(3), sent, updates=4, seed=seed)
        assert found == [[Decision()] * 3 + [Decision(signal.SIGTERM, True)]] * 3


@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_in_the_last_update_of_an_epoch_is_not_forgotten(who):
    """Nothing is exchanged between the batches of an evaluation, which may have none."""
    ranks = ranks_of()
    assert decisions(ranks, [(3, who, signal.SIGTERM)], updates=3) == [[Decision()] * 3] * 2
    assert [rank.stop_of_evaluation() for rank in ranks] == [0, 0] and not any(rank._pending for rank in ranks)
    assert [rank.decide(4) for rank in ranks] == [Decision(signal.SIGTERM)] * 2


def test_a_request_to_stop_ends_the_evaluation_of_every_rank():
    asked, other = ranks_of()
    ours = iter(asked.interruptible(range(5)))
    theirs = iter(other.interruptible(range(5)))
    assert (next(ours), next(ours), next(theirs)) == (0, 1, 0)
    receive(asked, signal.SIGINT)
    assert (list(ours), list(theirs)) == ([], []) and asked.stopped_early and other.stopped_early
    assert asked.stop_of_evaluation() == other.stop_of_evaluation() == signal.SIGINT


def test_an_evaluation_cut_short_on_one_rank_counts_on_all():
    for theirs, stop in (([0.0, 0.0], 0), ([1.0, 15.0], 15), ([0.0, 15.0], 0)):
        one, _ = ranks_of(theirs=theirs)
        assert one.stop_of_evaluation() == stop
    _, told = ranks_of(theirs=[0.0, 0.0])
    receive(told, signal.SIGTERM)
    assert told.stop_of_evaluation() == 0  # nobody's evaluation was cut short: it ends after the next update
