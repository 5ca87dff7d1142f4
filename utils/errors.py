"""The errors of the program, one class per exit code, and how they are reported.

A `RunError` is something the user can fix. It is reported without a traceback, as a single line:
"error: subject: problem (remedy)".
"""

import difflib
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
    75: "terminated, run again to resume",
    130: "interrupted",
}


class RunError(Exception):
    """Base of all errors that the user can fix.

    Args: subject: the configuration key, option or file at fault; problem: what is wrong with it; remedy: what to do.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, subject: str, problem: str = "", remedy: str = ""):
        super().__init__(subject, problem, remedy)
        self.subject, self.problem, self.remedy = subject, problem, remedy

    def __str__(self) -> str:
        text = f"{self.subject}: {self.problem}" if self.problem else self.subject
        return f"{text} ({self.remedy})" if self.remedy else text


class ConfigError(RunError):
    """The command line or the configuration is wrong, or does not suit the model, the data or the machine."""

    exit_code = 2


class DataError(RunError):
    """Missing folders, mismatched classes, unreadable images."""

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
    """Disk, memory, permissions, or a loader process that died."""

    exit_code = 7


class TerminatedError(RunError):
    """SIGTERM: a scheduler wants the machine back. 75 (EX_TEMPFAIL) asks it to start the same command again."""

    exit_code = 75


def listing(names: Iterable[str], count: int = 5) -> str:
    """Joins the first `count` names with commas, for a message; an ellipsis marks that there are more."""
    first = list(islice(names, count + 1))
    return ", ".join(first[:count]) + (", ..." if len(first) > count else "")


def count(number: int, noun: str, plural: str = "") -> str:
    """Returns "1 epoch", "2 epochs"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Returns "did you mean X?" for the known name closest to `name`, ignoring case.

    The right last part of a dotted name in the wrong group counts as closest. If nothing is close, returns
    `otherwise`, or the first known names.
    """
    names = {each.lower(): each for each in known}
    wanted = name.lower()
    leaf = wanted.rsplit(".", 1)[-1]
    near = [each for each in names if "." in each and each.rsplit(".", 1)[-1] == leaf]
    near = near or difflib.get_close_matches(wanted, names, n=1)
    if near:
        return f"did you mean {names[near[0]]}?"
    return otherwise or f"choose one of {listing(names.values(), 10)}"


def one_line(error: BaseException) -> str:
    """Returns the message on one line, with control characters escaped."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: f"\\x{ord(m.group()):02x}", text)


def report_error(error: BaseException, *, speak: bool, debug: bool = False, detail: str = "") -> int:
    """Prints the error line, with a traceback for bugs of the program or under --debug; returns the exit code.

    The line also goes to log.txt, and to the file from which torchrun composes its own report.
    Args: speak: whether this rank reports for the whole job; detail: lines to print before.
    """
    if isinstance(error, KeyboardInterrupt):
        code, text = 130, f"interrupted{': ' if error.args else ''}{one_line(error) if error.args else ''}"
    else:
        code, text = getattr(error, "exit_code", 1), one_line(error)
    if not speak:
        return code
    if debug or code == 1:
        detail += "".join(traceback.format_exception(error))
    _tell_launcher(text)
    for handler in list(logging.getLogger().handlers):  # the terminal gets the line from stderr
        with suppress(OSError, ValueError):
            handler.flush()
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("error", logging.ERROR, "", 0, f"{detail}error: {text}", None, None))
    with suppress(OSError, ValueError, RuntimeError, AttributeError):  # closed, or in use by the code interrupted
        sys.stdout.flush()
    with suppress(OSError, ValueError, RuntimeError, AttributeError):
        print(f"{detail}error: {text}", file=sys.stderr, flush=True)
    return code


def run_to_exit_code(action: Callable[[], int | None], debug: bool = False) -> int:
    """Calls the action of a script; returns its exit code, 0 for None, or that of an error, after the error's line."""
    try:
        return action() or 0
    except BrokenPipeError:  # the reader of the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        if is_out_of_memory(error):
            error = ResourceError("out of memory: --batch-size: use a smaller one, or smaller images")
        return report_error(error, debug=debug, speak=True)
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error, torch's among them, says that the memory of the machine or of a device is exhausted."""
    names = {kind.__name__ for kind in type(error).__mro__}  # torch is not imported here
    text = str(error)
    by_text = "MPS backend out of memory" in text or "DefaultCPUAllocator" in text
    return by_text or not names.isdisjoint({"MemoryError", "OutOfMemoryError"})


def _tell_launcher(text: str) -> None:
    """Writes the error file that torchrun quotes at the end of its report."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    content = {
        "message": f"error: {text}",
        "extraInfo": {"py_callstack": f"error: {text}", "timestamp": str(int(time.time()))},
    }
    with suppress(OSError), open(path, "w", encoding="utf-8") as file:
        json.dump({"message": content}, file)
