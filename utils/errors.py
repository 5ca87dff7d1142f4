"""Errors that the user can fix, one class per exit code, and their reporting.

A `RunError` is reported without a traceback, as a single line: "error: subject: problem (remedy)".
"""

import difflib
import errno
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import ClassVar

EXIT_CODES = {
    0: "done",
    2: "command line or configuration",
    3: "data",
    4: "checkpoint or weights",
    5: "distributed",
    6: "numerics",
    7: "resources",
    75: "terminated; run again to resume",
    130: "interrupted",
}

# the state of the machine, or a name that its file system does not accept: never a bug
_FILE_ERRORS = {
    errno.EACCES: "check its permissions, or choose another path",
    errno.EPERM: "check its permissions, or choose another path",
    errno.EROFS: "choose a path on a writable disk",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a symbolic link refers to itself: choose another path",
    errno.ENOTDIR: "part of the path is a file: choose another path",
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space, or ask for a larger quota",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network file system",
    errno.EMFILE: "raise the limit on open files with ulimit -n",
    errno.ENFILE: "close other programs, or raise the limit on open files",
}


class RunError(Exception):
    """Base class for errors the user can fix.

    Args: subject: the configuration key, option or file at fault; problem: what is wrong with it; remedy: what to do.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, subject: str, problem: str, remedy: str = ""):
        super().__init__(subject, problem, remedy)
        self.subject, self.problem, self.remedy = subject, problem, remedy

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}{f' ({self.remedy})' if self.remedy else ''}"


class ConfigError(RunError):
    """The command line or the configuration is invalid, or does not suit the model, the data or the machine."""

    exit_code = 2


class DataError(RunError):
    """A folder is missing, classes do not match, or an image is unreadable."""

    exit_code = 3


class CheckpointError(RunError):
    """A checkpoint or weights file cannot be used."""

    exit_code = 4


class DistributedError(RunError):
    """The ranks of a job cannot work together."""

    exit_code = 5


class NumericsError(RunError):
    """Training no longer produces finite gradients."""

    exit_code = 6


class ResourceError(RunError):
    """Disk space, memory or permissions are insufficient, or a loader worker died."""

    exit_code = 7


class TerminatedError(RunError):
    """A signal ended the run. 75 is EX_TEMPFAIL: a scheduler should rerun the same command."""

    exit_code = 75


def listing(names: Iterable[str], count: int = 5) -> str:
    """Joins the first `count` names with commas; an ellipsis stands for the rest."""
    first = list(islice(names, count + 1))
    return ", ".join(first[:count]) + (", ..." if len(first) > count else "")


def count(number: int, noun: str, plural: str = "") -> str:
    """Returns "1 epoch", "2 epochs"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Returns "did you mean X?" for the known name closest to `name`, ignoring case and the dashes of options.

    A dotted name with the same last part in another group is closest. If nothing is close, returns `otherwise`, or the
    first known names.
    """
    names = {each.lower().lstrip("-"): each for each in known}
    word = name.lower().lstrip("-")
    near = [each for each in names if "." in each and each.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    near = near or difflib.get_close_matches(word, names, n=1)
    if near:
        return f"did you mean {names[near[0]]}?"
    return otherwise or f"choose one of {listing(names.values(), 10)}"


def one_line(error: BaseException) -> str:
    """Returns the message on one line, with control characters escaped and long values shortened; keeps the remedy."""
    if isinstance(error, RunError):
        parts = RunError(shortened(error.subject), shortened(error.problem, 1000), shortened(error.remedy, 500))
        text = str(parts)
    else:
        text = shortened(str(error), 1500)
    return printable(" ".join(map(shortened, text.split())) or type(error).__name__)


def shortened(text: str, length: int = 200) -> str:
    """Shortens the text to its beginning and end if it exceeds `length` characters."""
    return text if len(text) <= length else f"{text[: length - 50]}...{text[-40:]}"


def printable(text: str) -> str:
    """Escapes bidirectional and other control characters, except line breaks and tabs."""
    escaped = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
    return re.sub(escaped, lambda m: m.group().encode("unicode_escape").decode(), text)


def accept_any_text() -> None:
    """Makes stdout and stderr escape characters that their encoding cannot represent, e.g. in file names."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not if closed or replaced
            stream.reconfigure(errors="backslashreplace")


def report_error(error: BaseException, *, speak: bool, debug: bool = False, detail: str = "") -> int:
    """Prints the error line, with a traceback for bugs in the program or under --debug; returns the exit code.

    File system errors are reported as a ResourceError for the file. The line also goes to log.txt, and to the file
    that torchrun quotes in its report.
    Args: speak: whether this rank reports for the whole job; detail: lines to print first.
    """
    error = _of_the_file_system(error)
    if isinstance(error, KeyboardInterrupt):
        code, text = 130, f"interrupted: {one_line(error)}" if error.args else "interrupted"
    else:
        code, text = getattr(error, "exit_code", 1), one_line(error)
    if not speak:
        return code
    if debug or code == 1:
        detail += "".join(traceback.format_exception(error))
    _write_torchrun_error(text)
    for handler in list(logging.getLogger().handlers):  # a terminal shows the line from stderr
        with suppress(OSError, ValueError):
            handler.flush()
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("error", logging.ERROR, "", 0, f"{detail}error: {text}", None, None))
    with suppress(OSError, ValueError, RuntimeError, AttributeError):  # closed, or in use by the interrupted code
        sys.stdout.flush()
    with suppress(OSError, ValueError, RuntimeError, AttributeError):
        print(f"{detail}error: {text}", file=sys.stderr, flush=True)
    return code


def run_to_exit_code(action: Callable[[], int | None], debug: bool = False) -> int:
    """Runs a script and reports its error; returns the exit code, 0 for None."""
    accept_any_text()
    try:
        return action() or 0
    except BrokenPipeError:  # the reader of the output, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        if is_out_of_memory(error):
            error = ResourceError("--batch-size", "the machine ran out of memory", "reduce it, or use smaller images")
        return report_error(error, debug=debug, speak=True)
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether, according to Python or torch, the machine or a device is out of memory."""
    if any(text in str(error) for text in ("MPS backend out of memory", "DefaultCPUAllocator")):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}  # torch is not imported here
    return not names.isdisjoint({"MemoryError", "OutOfMemoryError"})


def _of_the_file_system(error: BaseException) -> BaseException:
    """Converts a file system error to a ResourceError for the file; returns other errors unchanged."""
    if not isinstance(error, OSError) or error.filename is None or error.errno not in _FILE_ERRORS:
        return error
    refused = ResourceError(str(error.filename), str(error.strerror).lower(), _FILE_ERRORS[error.errno])
    refused.__cause__ = error  # for --debug
    return refused


def _write_torchrun_error(text: str) -> None:
    """Writes the error file that torchrun quotes at the end of its report."""
    path, line = os.environ.get("TORCHELASTIC_ERROR_FILE"), f"error: {text}"
    if path:
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": line, "extraInfo": extra}}, file)
