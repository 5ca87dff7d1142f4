"""Speeds up imports of large libraries, and garbage collection after them."""

import gc
import sys

STARTING = "starting ..."


def begin_imports(show: bool = False) -> None:
    """Disables garbage collection, which takes a third of the import time, until `end_imports`.

    It also hides wandb, which timm would import wherever it is installed. Args: show: whether a terminal shows that the
    program is starting, until `end_imports`.
    """
    if show and sys.stdout is not None and sys.stdout.isatty():
        print(STARTING, end="\r", flush=True)
    gc.disable()
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # as if it were not installed


def end_imports(show: bool = False) -> None:
    """Re-enables garbage collection, for objects created from now on. Args: as for `begin_imports`.

    Modules live as long as the process: collections that skip them take less time, and do not copy the pages that
    forked processes share.
    """
    if show and sys.stdout is not None and sys.stdout.isatty():
        print(" " * len(STARTING), end="\r", flush=True)
    if sys.modules.get("wandb", sys) is None:
        del sys.modules["wandb"]
    gc.enable()
    gc.freeze()
