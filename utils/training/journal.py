"""What a run tells: terminal and log.txt for people, metrics.jsonl and TensorBoard for programs."""

import json
import logging
import sys
from collections.abc import Iterable
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, ClassVar

from termcolor import colored
from tqdm import tqdm

from utils.checkpoints.files import write_whole

_FORMAT, _TIME = "[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S"


class _Terminal(logging.Handler):
    """Coloured lines that leave a progress bar intact."""

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
        except (OSError, ValueError):  # nobody reads the terminal any more; the run goes on
            self.handleError(record)


def start_logging(is_main: bool) -> None:
    """Log to the terminal from the main process; the others tell only which files they could not read."""
    if not is_main:
        files = logging.getLogger("data.pipeline.workers")
        files.handlers = [_Terminal()]
        files.setLevel(logging.WARNING)
    root = logging.getLogger()
    # what is logged before the file is known waits for it
    root.handlers = [_Terminal(), MemoryHandler(10_000, logging.CRITICAL + 1)] if is_main else [logging.NullHandler()]
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    root.setLevel(logging.INFO if is_main else logging.CRITICAL)


def log_lines(lines: Iterable[str]) -> None:
    """Log several lines, each with its own time."""
    for line in lines:
        logging.getLogger(__name__).info(line)


def log_to_file(path: Path) -> None:
    """Append everything that is logged to a plain text file too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
    root = logging.getLogger()
    for waiting in [h for h in root.handlers if isinstance(h, MemoryHandler)]:
        waiting.setTarget(handler)
        waiting.close()  # passes everything on
        root.removeHandler(waiting)
    root.addHandler(handler)


class Journal:
    """metrics.jsonl and TensorBoard of a run; for a process that does not write, `folder` is None.

    metrics.jsonl holds only what is reproducible, so that an interrupted run ends with the same bytes as one that was
    not; speeds go to TensorBoard and the log.
    """

    def __init__(self, folder: Path | None, update: int):
        """Go on after `update`: what was written later, by a run that was then interrupted, is taken back."""
        self._folder = folder
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import: the writing process only

        self.metrics = folder / "metrics.jsonl"
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        kept = [line for line in lines if _update_of(line) <= update]
        write_whole(self.metrics, "".join(line + "\n" for line in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def write(self, record: dict[str, Any], scalars: dict[str, float]) -> None:
        """One line with `record`, which holds `update`; `scalars` to TensorBoard at that update."""
        if self._folder is None:
            return
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(name, value, record["update"])

    def close(self) -> None:
        if self._folder is not None:
            self._board.close()


def _update_of(line: str) -> float:
    """Update of a metrics line; a line that a kill cut short counts as never written."""
    try:
        return json.loads(line)["update"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
