"""Ctrl-C, honoured where a run can stop cleanly.

Python raises KeyboardInterrupt wherever it happens to be; raised inside a callback of torch it is lost and training
continues. The handler therefore only sets a flag, which the loops check.
"""

import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")


class Interrupt:
    """Remembers the first SIGINT; a second one ends the process immediately with 130."""

    def __init__(self) -> None:
        self._requested = False

    def listen(self) -> None:
        """Replaces Python's own handler."""
        signal.signal(signal.SIGINT, self._handle)

    def check(self) -> None:
        """Raises: KeyboardInterrupt if one was requested."""
        if self._requested:
            raise KeyboardInterrupt

    def guard(self, items: Iterable[T]) -> "Guarded[T]":
        """Returns an iterable over `items` that checks before each of them."""
        return Guarded(self, items)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self._requested:
            os._exit(130)
        self._requested = True


class Guarded(Generic[T]):
    """An iterable that an interrupt ends between two items; it can be iterated again."""

    def __init__(self, interrupt: Interrupt, items: Iterable[T]):
        self._interrupt, self._items = interrupt, items

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self._interrupt.check()
            yield item
