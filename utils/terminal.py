"""What a run says: coloured lines on the terminal, plain lines in log.txt."""

import logging
import os
import sys
from collections.abc import Iterable
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import ClassVar

from termcolor import colored
from tqdm import tqdm

_FORMAT, _TIME = "[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S"
EVERY_RANK = "every_rank"  # logger whose warnings are shown by all ranks


class _Terminal(logging.Handler):
    """Writes coloured lines that leave a progress bar intact."""

    _COLORS: ClassVar = {logging.WARNING: "yellow", logging.ERROR: "red"}

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(colored("[%(asctime)s]", "green") + " %(message)s", _TIME))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            color = self._COLORS.get(record.levelno)
            tqdm.write(colored(line, color) if color else line, file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError):  # nobody reads the terminal any more: the run continues silently
            logging.getLogger().removeHandler(self)
            _discard("stdout")


def start_logging(is_main: bool) -> None:
    """Logs to the terminal from the main rank; the others only show warnings of the logger `EVERY_RANK`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            _discard(name)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files that the terminal cannot show
    if not is_main:
        everywhere = logging.getLogger(EVERY_RANK)
        everywhere.handlers = [_Terminal()]
        everywhere.setLevel(logging.WARNING)
    root = logging.getLogger()
    # records are buffered until the log file is known
    root.handlers = [_Terminal(), MemoryHandler(10_000, logging.CRITICAL + 1)] if is_main else [logging.NullHandler()]
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    root.setLevel(logging.INFO if is_main else logging.CRITICAL)


def _discard(stream: str) -> None:
    """Points sys.stdout or sys.stderr at nothing; the interpreter would fail to flush a closed one at its end."""
    setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def log_lines(lines: Iterable[str]) -> None:
    """Logs several lines, each as a record of its own."""
    for line in lines:
        logging.getLogger(__name__).info(line)


def log_to_file(path: Path) -> None:
    """Appends everything that is logged to a plain text file as well. Raises: OSError."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
    root = logging.getLogger()
    for buffered in [h for h in root.handlers if isinstance(h, MemoryHandler)]:
        buffered.setTarget(handler)
        buffered.close()  # flushes to the file
        root.removeHandler(buffered)
    root.addHandler(handler)
