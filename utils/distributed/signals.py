"""Signals, handled where a run can stop cleanly: `STOPPING` and SIGINT end it, SIGUSR1 saves a checkpoint.

Until training begins there is nothing to save, and a signal ends the process with one line. From then on the handler
only records the signal: an exception raised from it inside a torch callback would be lost. After every update the ranks
start an all-reduce of the recorded signals and read the result after the next one: all save and stop after the same
update, without waiting. A second SIGINT ends the process immediately.
"""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from utils.errors import TerminatedError, report_error
from utils.rank import launched_rank

if TYPE_CHECKING:  # this module is imported before any slow ones
    from torch import Tensor

    from utils.distributed.world import World

T = TypeVar("T")
# sent by schedulers, and by a terminal that is closed
STOPPING = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2, signal.SIGXCPU})
HANDLED = STOPPING | {signal.SIGINT, signal.SIGUSR1}
MOVED = 1000  # no signal: the output folder was moved or removed
BLOCKED = 1.0  # seconds after which an unhandled signal means that the main thread is blocked
_AGAIN = "run the same command again to resume"


class Decision(NamedTuple):
    """What all ranks do after an update. `stop`: signal that ends the run, or `MOVED`, 0 for none; `save`: whether to
    save a checkpoint."""

    stop: int = 0
    save: bool = False


class Interrupt:
    """Collects the signals sent to this process and agrees on them with the other ranks."""

    def __init__(self) -> None:
        self._world: World | None = None
        self._deferred = False
        self._stop = 0
        self._interrupted = False  # by SIGINT
        self._save = False
        self._announced = False  # whether the other ranks' evaluations were told to stop
        self._agreed = Decision()  # agreed by all ranks, for the next update
        self._pending: tuple[Any, Tensor] | None = None  # an all-reduce in flight, and its values
        self.stopped_early = False  # whether an evaluation ended early

    def install(self) -> "Interrupt":
        """Replaces the signal handlers; returns self. A signal that is ignored, as under nohup, stays ignored."""
        for each in HANDLED:
            if signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, self._handle)
        return self

    def end_if_blocked(self) -> None:
        """Handles signals before training even while the main thread is blocked in native code, such as a rendezvous.

        Python runs handlers between instructions of the main thread only. torchrun waits for 30 seconds, then kills.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch_blocked, args=(reader,), name="signals", daemon=True).start()

    def ignore(self) -> None:
        """Ignores signals from here on: a launcher sends them to ranks that are about to exit."""
        for each in HANDLED:
            if signal.getsignal(each) == self._handle:
                signal.signal(each, signal.SIG_IGN)

    def join(self, world: "World") -> "World":
        """Shares signals with all ranks of `world`; returns it."""
        self._world = world
        return world

    def defer(self) -> None:
        """Defers signals to `decide` from here on."""
        self._deferred = True

    def error(self, stop: int, state: str = "") -> BaseException:
        """Returns the error that ends a run after the signal `stop`. Args: state: says whether the state was saved."""
        if stop == signal.SIGINT:
            return KeyboardInterrupt(*([f"{state} ({_AGAIN})"] if state else []))
        return TerminatedError(signal.Signals(stop).name, f"terminated{state and '; '}{state}", _AGAIN)

    def request_stop(self) -> None:
        """Requests the end of the run because its output folder was moved or removed."""
        self._stop = self._stop or MOVED

    def request_save(self) -> None:
        """Requests a checkpoint, as SIGUSR1 does."""
        self._save = True

    def decide(self, update: int) -> Decision:
        """Returns the action after `update`, the same on every rank. Every rank calls it after every update.

        The result reflects signals received before the previous call. Every rank has made that call: otherwise the
        gradients of `update` could not have been exchanged.
        """
        save, self._save = self._save, False  # later signals wait for the next call
        if self._world is None or self._world.size == 1:
            return Decision(self._stop, save)
        self._finish_pending()
        decision, self._agreed = self._agreed, Decision()
        if not decision.stop:  # nothing must be in flight when the run ends
            import torch

            values = torch.tensor([self._stop, int(save)])
            self._pending = self._world.begin_maximum(values), values
        return decision

    def interruptible(self, items: Iterable[T]) -> "Interruptible[T]":
        """Wraps the batches of an evaluation, so that a request to stop ends it early."""
        return Interruptible(self, items)

    def stop_of_evaluation(self) -> int:
        """Returns the signal if an evaluation was cut short on any rank, else 0. A collective operation.

        Completes the all-reduce started by the last `decide`, so that none is in flight after the last epoch.
        """
        if self._world is None or self._world.size == 1:
            return self._stop if self.stopped_early else 0
        import torch

        self._finish_pending()
        local = torch.tensor([float(self.stopped_early), float(self._stop)], device=self._world.device)
        cut, stop = self._world.gather(local).amax(0).tolist()
        return int(stop) if cut else 0

    def wants_stop(self) -> bool:
        """Returns whether this rank should stop evaluating.

        The shards of the ranks differ in length, which rules out collectives between batches: the rank that received
        the signal sets a key in the store.
        """
        if self._world is None or self._world.size == 1:
            return bool(self._stop)
        store = self._world.store
        if self._stop and not self._announced:
            self._announced = True
            store.set("stop", str(self._stop))
        if not self._stop and store.check(["stop"]):
            self._stop = int(store.get("stop"))
        return bool(self._stop)

    def tick(self, position: str) -> None:
        """Reports progress to the watchdog."""
        if self._world is not None:
            self._world.tick(position)

    def before_exit(self) -> None:
        """Waits for a checkpoint that is being written, when the process ends without unwinding."""
        if self._world is not None and self._world.watchdog is not None:
            self._world.watchdog.before_exit()

    def _finish_pending(self) -> None:
        if self._pending is not None:
            (work, values), self._pending = self._pending, None
            work.wait()
            stop, save = values.tolist()
            self._agreed = Decision(stop, bool(save))

    def _watch_blocked(self, reader: int) -> None:
        while received := os.read(reader, 64):
            time.sleep(BLOCKED)
            for number in received:
                missed = not (self._stop or self._deferred) and number in HANDLED - {signal.SIGUSR1}
                if missed and signal.getsignal(number) == self._handle:
                    self._handle(number, None)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._save = self._deferred  # before training there is nothing to save
            return
        again, self._interrupted = self._interrupted and number == signal.SIGINT, number == signal.SIGINT
        self._stop = self._stop or number
        watchdog = self._world.watchdog if self._world is not None else None
        if again:
            os._exit(130)
        if self._deferred:
            if watchdog is not None:
                watchdog.stopping = True
        elif watchdog is not None:
            watchdog.aborting = self.error(number)
        else:
            os._exit(report_error(self.error(number), speak=launched_rank() == 0))


class Interruptible(Generic[T]):
    """A re-iterable sequence of batches that ends early when the run should stop."""

    def __init__(self, interrupt: Interrupt, items: Iterable[T]):
        self._interrupt, self._items = interrupt, items

    def __iter__(self) -> Iterator[T]:
        for index, item in enumerate(self._items):
            self._interrupt.tick(f"batch {index} of an evaluation")
            if index and self._interrupt.wants_stop():
                self._interrupt.stopped_early = True
                return
            yield item
