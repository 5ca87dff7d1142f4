"""Ctrl-C, noticed where a run can stop cleanly.

Python raises KeyboardInterrupt wherever it happens to be; inside a callback of torch the exception is lost and training
goes on. So the signal only leaves a note, and the loops look for it.
"""

import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Interrupt:
    """Notes the first SIGINT; a second one ends the process at once with 130."""

    def __init__(self) -> None:
        self._asked = False

    def listen(self) -> None:
        """Take over from Python's own handler."""
        signal.signal(signal.SIGINT, self._note)

    def check(self) -> None:
        """Raises: KeyboardInterrupt if the user asked for it."""
        if self._asked:
            raise KeyboardInterrupt

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items on, checking before each."""
        for item in items:
            self.check()
            yield item

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        if self._asked:
            os._exit(130)
        self._asked = True
