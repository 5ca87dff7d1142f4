"""Errors of a run, how they are shown, and the exit codes of the program.

An error that has an `exit_code` is one that the user can mend: it is shown as one line, without a traceback. The
packages `configs`, `models` and `data` follow the same convention without importing this file.
"""

import logging
import re
import sys
import traceback
from typing import ClassVar

EXIT_CODES = {
    0: "done",
    2: "command line or configuration",
    3: "data",
    4: "checkpoint or weights",
    5: "distributed",
    6: "numerics",
    7: "resources",
    130: "interrupted",
}


class RunError(Exception):
    """What went wrong, where, and what to do about it."""

    exit_code: ClassVar[int] = 1


class PlanError(RunError):
    """The configuration does not fit this machine or this data set."""

    exit_code = 2


class CheckpointError(RunError):
    """A checkpoint or weights file that cannot be used."""

    exit_code = 4


class DistributedError(RunError):
    """The processes of a job cannot work together."""

    exit_code = 5


class NumericsError(RunError):
    """Training produces no finite gradient any more."""

    exit_code = 6


class ResourceError(RunError):
    """Disk, memory or permissions."""

    exit_code = 7


def one_line(error: BaseException) -> str:
    """The message with line breaks and control characters made harmless, so that an error is one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: f"\\x{ord(m.group()):02x}", text)


def show_error(error: BaseException, debug: bool, aloud: bool) -> int:
    """Print the one line of an error, with a traceback for a bug of ours or under --debug; returns the exit code.

    Args: aloud: this process speaks for the job.
    """
    if isinstance(error, KeyboardInterrupt):
        code, text = 130, "interrupted: run the same command again to go on from the last checkpoint"
    else:
        code, text = getattr(error, "exit_code", 1), one_line(error)
    if aloud or code == DistributedError.exit_code:  # only the process that it befell knows of it
        if debug or code == 1:
            traceback.print_exception(error)
        sys.stdout.flush()
        for handler in logging.getLogger().handlers:  # the terminal shows it anyway
            if isinstance(handler, logging.FileHandler):
                handler.handle(logging.LogRecord("error", logging.ERROR, "", 0, f"error: {text}", None, None))
        print(f"error: {text}", file=sys.stderr, flush=True)
    return code
