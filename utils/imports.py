"""Faster imports of large libraries, and faster garbage collections after them."""

import gc
import sys


def begin_imports() -> None:
    """Disables garbage collection, which takes a third of the time of imports, until `end_imports`.

    It also hides wandb, which timm would import wherever it is installed.
    """
    gc.disable()
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # as if it were not installed


def end_imports() -> None:
    """Enables garbage collection again, for objects created from now on.

    Modules live as long as the process: collections that skip them take less time, and do not copy the pages that
    forked processes share.
    """
    if sys.modules.get("wandb", sys) is None:
        del sys.modules["wandb"]
    gc.enable()
    gc.freeze()
