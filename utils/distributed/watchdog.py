"""A thread in each rank that ends it when another rank fails, disappears or hangs."""

import logging
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from utils.distributed.launcher import wait_if_launcher_is_gone
from utils.errors import DistributedError, RunError, TerminatedError, listing, report_error

INTERVAL = 0.5  # seconds between checks, and between heartbeats
SILENCE = 3.0  # seconds without a heartbeat after which a rank counts as gone
SUSPICIOUS = 60.0  # seconds without progress after which heartbeats are checked
_LEFT = "left"  # sent instead of a heartbeat
PATIENCE = 5.0  # seconds that a failed rank waits for the others: it may host the store


class Watchdog(threading.Thread):
    """Watches the other ranks through the store of the job.

    Args: store: a separate connection, since a store serves one thread at a time; timeout: seconds without progress
    that count as a hang, 0 for never. Progress is measured from the first `tick` on.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float = 0):
        super().__init__(name="watchdog", daemon=True)
        self._store, self._rank, self._size, self._timeout = store, rank, size, timeout
        self._stopped = threading.Event()
        self._progress: tuple[str, float] | None = None
        self._looked = 0.0
        self._beat = 0
        self.aborting: BaseException | None = None  # set by a signal handler: end now, with this error
        self.stopping = False  # set by a signal handler: the launcher may be ending the job because a rank is gone
        self.before_exit: Callable[[], None] = lambda: None
        store.set(f"who/{rank}", f"{platform.node()}, process {os.getpid()}")
        self._send_heartbeat()

    def tick(self, position: str) -> None:
        """Records that this rank has made progress. Args: position: its position in the run."""
        self._progress = (position, time.monotonic())

    @property
    def position(self) -> str:
        return self._progress[0] if self._progress else "the start"

    def run(self) -> None:
        """Checks until `stop`."""
        try:
            while not self._stopped.wait(INTERVAL):
                self._send_heartbeat()
                if self._store.check(["code"]) and not self._stopped.is_set():
                    self._exit(int(self._store.get("code")))
                if self.aborting is not None:
                    self._abort(self.aborting)
                self._check_progress()
        except RuntimeError:  # the rank that hosted the store is gone; the job is ending, or has ended
            if not self._stopped.wait(15):
                self._exit(report_error(self._lost_store(), speak=True))

    def stop(self) -> None:
        """Stops checking."""
        self._stopped.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(PATIENCE)

    def leave(self) -> None:
        """Stops checking at the end of the run, and tells the other ranks that this one has left."""
        self.stop()
        with suppress(RuntimeError):  # the rank that hosted the store has already left
            self._store.set(f"beat/{self._rank}", _LEFT)

    def claim(self, topic: str) -> bool:
        """Returns True on the first rank that claims `topic`."""
        return self._store.add(f"claim/{topic}", 1) == 1

    def raise_alarm(self, code: int) -> int:
        """Ends the other ranks with `code`, or with the code of an earlier failure, and returns it.

        This rank must have stopped checking.
        """
        try:
            code = int(self._store.compare_set("code", "", str(code)))
            self._store.add("ended", 1)
            last = time.monotonic() + PATIENCE
            while self._store.add("ended", 0) < self._size and time.monotonic() < last:
                time.sleep(0.05)
        except RuntimeError:  # the rank that hosted the store is gone
            pass
        return code

    def explain(self, error: Exception) -> RunError:
        """Converts the error of a collective operation to one that names the ranks that are gone."""
        try:
            gone = self._silent_ranks()
        except RuntimeError:  # the store is gone
            wait_if_launcher_is_gone()
            return self._lost_store()
        if gone:
            return self._lost_ranks(gone)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        problem = f"lost the connection to the other ranks at {self.position} ({reason[0]})"
        remedy = "check the network and the logs of the other machines, then run the same command again"
        return DistributedError(f"rank {self._rank}", problem, remedy)

    def _lost_ranks(self, ranks: list[int]) -> DistributedError:
        return self._lost(listing(f"rank {rank}" for rank in ranks), listing(map(self._host, ranks)))

    def _lost_store(self) -> DistributedError:
        return self._lost("MASTER_ADDR", "the rank that hosts the store")

    def _lost(self, subject: str, who: str) -> DistributedError:
        remedy = "check whether it was killed or ran out of memory, then run the same command again to resume"
        return DistributedError(subject, f"disappeared at {self.position}: {who}", remedy)

    def _host(self, rank: int) -> str:
        return self._store.get(f"who/{rank}").decode()

    def _send_heartbeat(self) -> None:
        self._beat += 1
        self._store.set(f"beat/{self._rank}", str(self._beat))

    def _silent_ranks(self) -> list[int]:
        """Waits for `SILENCE` and returns the ranks without a heartbeat meanwhile."""
        keys = [f"beat/{rank}" for rank in range(self._size)]
        before = self._store.multi_get(keys)
        last = time.monotonic() + SILENCE
        while time.monotonic() < last:
            time.sleep(INTERVAL)
            if threading.current_thread() is self:
                self._send_heartbeat()
        after = self._store.multi_get(keys)
        return [r for r in range(self._size) if before[r] == after[r] != _LEFT.encode() and r != self._rank]

    def _check_progress(self) -> None:
        if self._store.check(["hang"]):
            self._report_hang()
        if self._progress is None:
            return
        now, idle = time.monotonic(), time.monotonic() - self._progress[1]
        if self._timeout and idle > self._timeout:
            self._store.compare_set("hang", "", str(self._rank))
            self._report_hang()
        patience = 10.0 if self.stopping else SUSPICIOUS
        if idle > patience and now - self._looked > patience:
            gone, self._looked = self._silent_ranks(), now
            if gone and self._progress[1] < now:
                self._end_all(self._lost_ranks(gone))

    def _abort(self, error: BaseException) -> None:
        """Ends the job after a signal; blames a lost rank if there is one, since launchers then send SIGTERM."""
        gone = self._silent_ranks() if isinstance(error, TerminatedError) else []
        self._end_all(self._lost_ranks(gone) if gone else error)

    def _report_hang(self) -> None:
        """Posts the stacks of this rank; the rank that detected the hang prints all stacks and ends the job."""
        self._store.set(f"stacks/{self._rank}", f"at {self.position}\n{format_stacks()}")
        if int(self._store.get("hang")) != self._rank:
            return
        silent = set(self._silent_ranks())
        found, stuck = [], []
        for rank in range(self._size):
            who = f"rank {rank} ({self._host(rank)})"
            if rank not in silent and self._store.check([f"stacks/{rank}"]):
                found.append(f"{who} {self._store.get(f'stacks/{rank}').decode()}")
            else:
                found.append(f"{who} does not respond\n")
                stuck.append(who)
        who = f"{listing(stuck)} does not respond" if stuck else "all ranks respond, their stacks are above"
        problem = f"no progress for {self._timeout:g} seconds at {self.position}; {who}"
        remedy = "raise it if an update may take longer; otherwise check that machine and run the same command again"
        self._end_all(DistributedError("TIMEOUT_MINUTES", problem, remedy), "\n".join(found))

    def _end_all(self, error: BaseException, detail: str = "") -> None:
        """Reports `error` for the job and ends all ranks."""
        code = report_error(error, speak=self.claim("error"), detail=detail)
        self._exit(int(self._store.compare_set("code", "", str(code))))

    def _exit(self, code: int) -> None:
        with suppress(RuntimeError):  # the store is gone
            self._store.add("ended", 1)
        self.before_exit()
        logging.shutdown()
        os._exit(code)


def format_stacks() -> str:
    """Returns the Python stacks of all threads except the calling one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [
        f"  thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    ]
    return "".join(stacks)
