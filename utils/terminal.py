"""Console output: coloured lines, progress bars and tables on a terminal, plain lines elsewhere and in log.txt."""

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import zip_longest
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from termcolor import colored

from utils.errors import accept_any_text, printable

log = logging.getLogger(__name__)
T = TypeVar("T")
_FORMAT, _TIME, _CLOCK = "[%(asctime)s] %(message)s", "%m-%d %H:%M:%S", "%H:%M:%S"
_WIDE = 100  # columns of a terminal from which on its lines have a date
EVERY_RANK = "every_rank"  # logger whose warnings are shown by all ranks
# `extra` of a log record: IN_BAR lines go to log.txt only if a progress bar shows the same; SUMMARY highlights a line
IN_BAR, SUMMARY = {"in_bar": True}, {"color": "cyan"}
_UNLIMITED = 10_000  # columns of a table outside of a terminal
_NARROW, _NARROWEST = 8, 5  # minimum width of a folded text column, and where the columns would not fit otherwise
_WORDS = re.compile(r"[^\s/._,-]*[\s/._,-]|[^\s/._,-]+")
QUIET = 30.0  # seconds between progress lines without a bar


class _Formatter(logging.Formatter):
    """Escapes control characters, which names of files and classes may contain."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


class _Terminal(logging.Handler):
    """Prints coloured lines, above the progress bar if there is one."""

    _COLORS: ClassVar = {logging.WARNING: "yellow", logging.ERROR: "red"}

    def __init__(self) -> None:
        super().__init__()
        narrow = interactive() and shutil.get_terminal_size().columns < _WIDE
        stamp = _CLOCK if narrow else _TIME
        self.setFormatter(_Formatter(colored("[%(asctime)s]", "green") + " %(message)s", stamp))

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "in_bar") and Bar.shown is not None:
            return
        try:
            line = self.format(record)
            color = getattr(record, "color", None) or self._COLORS.get(record.levelno)
            line = colored(line, color) if color else line
            if Bar.shown is not None:
                Bar.shown.write(line)
            else:
                print(line, flush=True)
        except (OSError, ValueError):  # the terminal was closed: the run continues silently
            logging.getLogger().removeHandler(self)
            _discard("stdout")

    def flush(self) -> None:
        """Removes the progress bar, so that an error gets a separate line."""
        if Bar.shown is not None:
            Bar.shown.close()


class Bar:
    """A progress bar at the bottom of the terminal; a no-op on other outputs and other ranks. A context manager.

    Args: title: shown before the bar; total: number of steps; unit: name of a step; done: steps done before.
    """

    allowed: ClassVar[bool] = True  # true on the main rank only
    shown: ClassVar["Bar | None"] = None

    def __init__(self, title: str, total: int, unit: str, done: int = 0):
        self._progress: Any = None
        if not interactive() or Bar.shown is not None:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            MofNCompleteColumn(),
            TextColumn(f"{unit} {{task.fields[details]}}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=_console(),
            transient=True,
            expand=True,
            refresh_per_second=4,
            redirect_stdout=False,  # redirecting would send stderr messages to stdout
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, details="")

    def __enter__(self) -> "Bar":
        if self._progress is not None:
            Bar.shown = self
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if Bar.shown is self:
            Bar.shown = None
            self._progress.stop()

    def advance(self, steps: int = 1, details: str | None = None) -> None:
        """Advances the bar. Args: details: text next to the bar, None to keep it."""
        if self._progress is not None:
            fields = {} if details is None else {"details": details}
            self._progress.update(self._task, advance=steps, **fields)

    def write(self, line: str) -> None:
        """Writes a line above the bar."""
        from rich.text import Text

        self._progress.console.print(Text.from_ansi(line), soft_wrap=True)


def track(items: Iterable[T], title: str, total: int, unit: str) -> Iterator[T]:
    """Yields the items and shows progress: a bar, or a log line every 30 seconds."""
    started = logged = time.monotonic()
    with Bar(title, total, unit) as bar:
        for count, item in enumerate(items, start=1):
            yield item
            bar.advance()
            now = time.monotonic()
            if Bar.shown is None and now - logged >= QUIET:
                logged, left = now, (now - started) / count * (total - count)
                log.info("%s: %d of %d %s, %s left", title, count, total, unit, duration(left))


def say(*lines: object) -> None:
    """Prints lines to stdout, with control characters escaped: names of files and classes may contain any."""
    for line in lines:
        print(printable(str(line)))


def interactive() -> bool:
    """Returns whether this rank writes to a terminal."""
    return Bar.allowed and sys.stdout is not None and sys.stdout.isatty()


def duration(seconds: float) -> str:
    """Formats seconds as "0:01:05", or "3d 4h" from a day on."""
    if seconds >= 86400:
        hours = int(seconds // 3600)
        return f"{hours // 24}d {hours % 24}h"
    return str(timedelta(seconds=int(seconds)))


def table_lines(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> list[str]:
    """Formats a table: numbers right-aligned, everything else left-aligned.

    Args: width: maximum line length, to which long cells are folded; None: the terminal's width, unlimited elsewhere.
    Returns: its lines.
    """
    from rich.cells import cell_len

    if width is None:
        width = shutil.get_terminal_size().columns if interactive() else _UNLIMITED
    texts = [[_cell(value) for value in row] for row in rows]
    numbers = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    longest = [max(map(cell_len, [name, *(row[i] for row in texts)])) for i, name in enumerate(head)]
    gaps = 2 * (len(head) - 1)
    for narrow in (_NARROW, _NARROWEST):
        least = [each if number else min(each, narrow) for each, number in zip(longest, numbers, strict=True)]
        if sum(least) + gaps <= width:
            break
    # if the columns cannot fit, the terminal wraps the lines and nothing is lost
    widths = _fitted(longest, least, width - gaps) if sum(least) + gaps <= width else longest
    folded = [[_folded(*cell) for cell in zip(row, widths, strict=True)] for row in [list(head), *texts]]
    widths = [max(cell_len(part) for row in folded for part in row[i]) for i in range(len(head))]
    lines = []
    for cells in folded:
        for parts in zip_longest(*cells, fillvalue=""):
            blanks = [" " * (room - cell_len(part)) for part, room in zip(parts, widths, strict=True)]
            aligned = [b + part if n else part + b for part, b, n in zip(parts, blanks, numbers, strict=True)]
            lines.append("  ".join(aligned).rstrip())
    return lines


def _fitted(longest: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Returns the widths of columns, of which the widest are narrowed until they fit."""
    widths = list(longest)
    while sum(widths) > room:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _folded(text: str, width: int) -> list[str]:
    """Breaks a text into lines behind blanks and the separators of paths and keys, or anywhere in a long word."""
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for word in _WORDS.findall(text):
        if cell_len((lines[-1] + word).rstrip()) <= width:
            lines[-1] += word
            continue
        word = word.lstrip()
        lines += [word] if cell_len(word.rstrip()) <= width else chop_cells(word, width)
    return [line.strip() for line in lines if line.strip()] or [""]


def _cell(value: object) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return printable(re.sub(r"[\t\n\r\v\f]", " ", text))


def _console() -> Any:
    from rich.console import Console

    class Steady(Console):
        """Leaves the cursor visible: a killed process could not restore it."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    return Steady(highlight=False)


def start_logging(is_main: bool) -> None:
    """Logs to the terminal from the main rank; other ranks only show warnings of the logger `EVERY_RANK`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            _discard(name)
    accept_any_text()
    Bar.allowed = is_main
    if not is_main:
        everywhere = logging.getLogger(EVERY_RANK)
        everywhere.handlers = [_Terminal()]
        everywhere.setLevel(logging.WARNING)
    root = logging.getLogger()
    # records are buffered until the log file is known
    root.handlers = [_Terminal(), MemoryHandler(10_000, logging.CRITICAL + 1)] if is_main else [logging.NullHandler()]
    for chatty in ("matplotlib", "httpx", "httpx2", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    root.setLevel(logging.INFO if is_main else logging.CRITICAL)


def _discard(stream: str) -> None:
    """Redirects sys.stdout or sys.stderr to /dev/null: at exit, the interpreter would fail to flush a closed stream."""
    setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def log_lines(lines: Iterable[str]) -> None:
    """Logs each line as a separate record."""
    for line in lines:
        log.info(line)


class _LogFile(logging.FileHandler):
    """Drops lines if the disk fails, with one warning; the effects on the run are reported elsewhere."""

    _warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._warned:
            self._warned = True
            error = sys.exc_info()[1]
            reason = getattr(error, "strerror", None) or error
            log.warning("lines are missing from the log from here on (%s): %s", reason, self.baseFilename)


def log_to_file(path: Path) -> None:
    """Also appends all log records to a plain text file. Raises: OSError."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_Formatter(_FORMAT, _TIME))
    root = logging.getLogger()
    for buffered in [h for h in root.handlers if isinstance(h, MemoryHandler)]:
        buffered.setTarget(handler)
        buffered.close()  # flushes to the file
        root.removeHandler(buffered)
    root.addHandler(handler)
