"""What a run says: coloured lines, progress bars and tables on a terminal, plain lines elsewhere and in log.txt."""

import io
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from termcolor import colored

log = logging.getLogger(__name__)
T = TypeVar("T")
_FORMAT, _TIME = "[%(asctime)s] %(message)s", "%m-%d %H:%M:%S"
EVERY_RANK = "every_rank"  # logger whose warnings are shown by all ranks
# extra= of a log record: for log.txt, since a terminal shows it by the bar; a line that sums up
IN_BAR, SUMMARY = {"in_bar": True}, {"color": "cyan"}
_UNLIMITED = 10_000  # columns of a table that is not shown on a terminal
_NARROW = 8  # minimum width of a text column whose cells are folded
QUIET = 30.0  # seconds between two lines of progress where there is no bar


class _Terminal(logging.Handler):
    """Writes coloured lines, above the progress bar if there is one."""

    _COLORS: ClassVar = {logging.WARNING: "yellow", logging.ERROR: "red"}

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(colored("[%(asctime)s]", "green") + " %(message)s", _TIME))

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
        except (OSError, ValueError):  # nobody reads the terminal any more: the run continues silently
            logging.getLogger().removeHandler(self)
            _discard("stdout")

    def flush(self) -> None:
        """Removes the progress bar, so that an error has a line of its own."""
        if Bar.shown is not None:
            Bar.shown.close()


class Bar:
    """A progress bar at the bottom of the terminal; on other outputs and other ranks, nothing.

    Args: title: what is done; total: steps, of which `done` are done already; unit: of the steps. A context manager.
    """

    allowed: ClassVar[bool] = True  # not on ranks other than the main one
    shown: ClassVar["Bar | None"] = None

    def __init__(self, title: str, total: int, unit: str, done: int = 0):
        self._progress: Any = None
        if not interactive() or Bar.shown is not None:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            MofNCompleteColumn(),
            TextColumn(f"{unit} {{task.fields[details]}}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
        )
        # redirected, messages for stderr would go to stdout
        self._progress = Progress(
            *columns,
            console=_console(),
            transient=True,
            expand=True,
            refresh_per_second=4,
            redirect_stdout=False,
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
        """Args: details: text beside the bar, None for what it is."""
        if self._progress is not None:
            fields = {} if details is None else {"details": details}
            self._progress.update(self._task, advance=steps, **fields)

    def write(self, line: str) -> None:
        """Writes a line above the bar."""
        from rich.text import Text

        self._progress.console.print(Text.from_ansi(line), soft_wrap=True)


def track(items: Iterable[T], title: str, total: int, unit: str) -> Iterator[T]:
    """Passes items on and shows how many are done: by a bar, or by a line every half minute."""
    started = said = time.monotonic()
    with Bar(title, total, unit) as bar:
        for count, item in enumerate(items, start=1):
            yield item
            bar.advance()
            now = time.monotonic()
            if Bar.shown is None and now - said >= QUIET:
                said, left = now, (now - started) / count * (total - count)
                log.info("%s: %d of %d %s, %s left", title, count, total, unit, duration(left))


def interactive() -> bool:
    """Returns whether a person watches the output of this rank."""
    return Bar.allowed and sys.stdout is not None and sys.stdout.isatty()


def duration(seconds: float) -> str:
    """Returns "0:01:05", or "3d 4h" from a day on."""
    if seconds >= 86400:
        hours = int(seconds // 3600)
        return f"{hours // 24}d {hours % 24}h"
    return str(timedelta(seconds=int(seconds)))


def table_lines(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> list[str]:
    """Returns the lines of a table: numbers to the right, all else to the left.

    Args: width: maximum length of a line, long cells are folded to fit; None: the terminal's, unlimited elsewhere.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if width is None:
        width = shutil.get_terminal_size().columns if interactive() else _UNLIMITED
    table, least = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0)), 0
    texts = [[_cell(value) for value in row] for row in rows]
    for i, name in enumerate(head):
        numbers = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        longest = max(len(name), *(len(row[i]) for row in texts)) if rows else len(name)
        smallest = longest if numbers else min(longest, _NARROW)
        justify: Any = "right" if numbers else "left"
        table.add_column(Text(name), justify=justify, overflow="fold", min_width=smallest)
        least += smallest + 2
    for row in texts:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    # if there are too many columns to fit, the terminal wraps the lines and nothing is lost
    Console(
        file=text,
        width=width if least <= width + 2 else _UNLIMITED,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
    ).print(table)
    return [line.rstrip() for line in text.getvalue().rstrip("\n").split("\n")]


def _cell(value: object) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return re.sub(r"[\t\n\r\v\f]", " ", text)


def _console() -> Any:
    from rich.console import Console

    class Steady(Console):
        """Leaves the cursor visible: a process that is killed could not bring it back."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    return Steady(highlight=False)


def start_logging(is_main: bool) -> None:
    """Logs to the terminal from the main rank; the others only show warnings of the logger `EVERY_RANK`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            _discard(name)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files that the terminal cannot show
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
    """Points sys.stdout or sys.stderr at nothing; the interpreter would fail to flush a closed one at its end."""
    setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def log_lines(lines: Iterable[str]) -> None:
    """Logs several lines, each as a record of its own."""
    for line in lines:
        log.info(line)


class _LogFile(logging.FileHandler):
    """A failing disk costs lines of the file, with one warning; what it means for the run is reported elsewhere."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._said:
            self._said = True
            reason = getattr(sys.exc_info()[1], "strerror", None) or sys.exc_info()[1]
            log.warning("lines are missing from the log from here on (%s): %s", reason, self.baseFilename)


def log_to_file(path: Path) -> None:
    """Appends everything that is logged to a plain text file as well. Raises: OSError."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
    root = logging.getLogger()
    for buffered in [h for h in root.handlers if isinstance(h, MemoryHandler)]:
        buffered.setTarget(handler)
        buffered.close()  # flushes to the file
        root.removeHandler(buffered)
    root.addHandler(handler)
