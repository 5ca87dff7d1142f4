"""Completion of the command line by the shell: recipes after --cfg, keys and their values after --opts."""

import argparse
from typing import Any

from configs.checks import CHOICE
from configs.loading import CONFIGS
from configs.schema import KEYS


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell and ends the process. Without the package argcomplete, there is no answer."""
    try:
        import argcomplete
    except ImportError:
        return
    for action in parser._actions:
        if action.dest == "cfg":
            action.completer = recipes  # type: ignore[attr-defined]
        elif action.dest == "opts":
            action.completer = keys  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def recipes(prefix: str, **_: Any) -> list[str]:
    """Returns the names of recipes; of files, when a path is begun."""
    if "/" in prefix:
        from argcomplete.completers import FilesCompleter

        return list(FilesCompleter(["yaml", "yml"])(prefix))
    return sorted({file.stem for file in CONFIGS.rglob("*.yaml")})


def keys(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Returns the keys, or after one of them the values that it has by default or may have."""
    given = [each for each in parsed_args.opts or [] if each != prefix]
    if len(given) % 2 == 0:
        return [name for name, key in KEYS.items() if not key.deprecated]
    key = KEYS.get(given[-1])
    if key is None:
        return []
    if isinstance(key.default, bool):
        return ["True", "False"]
    answer = key.check("") if key.check and isinstance(key.default, str) else None
    return (answer or str(key.default)).removeprefix(CHOICE).split(", ")
