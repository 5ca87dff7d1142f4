"""The command line of a script."""

import argparse
import sys
from typing import Any, NoReturn

from utils.errors import ConfigError, report_error


class ScriptParser(argparse.ArgumentParser):
    """Shows the description as it is written, and reports a mistake as main.py does: in one line, with exit code 2."""

    def __init__(self, description: str | None = None, **more: Any) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        sys.exit(report_error(ConfigError(f"{message}: command line: {self.prog} --help explains it"), speak=True))
