"""The argument parser of the scripts."""

import argparse
import re
import sys
from typing import Any, NoReturn

from utils.devices import parse_device
from utils.errors import ConfigError, report_error
from utils.home import ensure_home


class ScriptParser(argparse.ArgumentParser):
    """Keeps the formatting of the description, and reports errors as main.py does: in one line, with exit code 2."""

    def __init__(self, description: str | None = None, **more: Any) -> None:
        ensure_home()
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def add_device(self) -> None:
        """Adds --device."""
        self.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda, cuda:N, mps (default auto)")

    def error(self, message: str) -> NoReturn:
        option = re.fullmatch(r"argument ([^:]+): (.+)", message)
        subject, problem = option.groups() if option else (self.prog, message)
        sys.exit(report_error(ConfigError(subject, problem, f"see {self.prog} --help"), speak=True))


def _device(text: str) -> str:
    try:
        return parse_device(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{e}, got {text!r}") from e
