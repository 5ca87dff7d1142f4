"""main.py with a line of JSON on stdout after every update: seconds spent waiting for data, computing, logging, saving.

python -m scripts.benchmarks.stopwatch --cfg swin_tiny ...
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.openmp import wait_briefly

if __name__ == "__main__":  # as in main.py, before torch is imported
    wait_briefly()

import main as program
from utils.runs.session import Session

MARK = "stopwatch "
PARTS = ("data", "step", "log", "save")


class Stopwatch:
    """Attributes every moment to one part of the program. Nothing is synchronised: on a GPU, `step` is the time to
    launch the work, until something waits for it."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "step", time.perf_counter()

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        outer = self._switch(part)
        try:
            yield
        finally:
            self._switch(outer)

    def attributed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.during(part):
                return work(*arguments, **named)

        return timed

    def lap(self) -> dict[str, float]:
        """Returns the seconds of every part since the last lap."""
        self._switch(self._part)
        seconds, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return seconds

    def _switch(self, part: str) -> str:
        now = time.perf_counter()
        self._seconds[self._part] += now - self._since
        outer, self._part, self._since = self._part, part, now
        return outer


def install(watch: Stopwatch) -> None:
    """Measures the training session, from outside."""
    batches, after_update = Session.watch, watch.attributed("log", Session.after_update)

    def timed_batches(session: Session, items: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(batches(session, items))
        watch.lap()
        while True:
            with watch.during("data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def timed_update(session: Session, *arguments: Any) -> None:
        after_update(session, *arguments)
        sys.stdout.write(MARK + json.dumps(watch.lap()) + "\n")  # in one piece: several ranks share the pipe
        sys.stdout.flush()

    Session.watch, Session.after_update = timed_batches, timed_update  # type: ignore[method-assign, assignment]
    Session._save = watch.attributed("save", Session._save)  # type: ignore[method-assign]


if __name__ == "__main__":
    program.interrupt.install()
    install(Stopwatch())
    sys.exit(program.main(sys.argv[1:]))
