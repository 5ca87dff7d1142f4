"""Faster imports of large libraries, and a smaller process after them."""

import gc
import sys


def begin_imports() -> None:
    """Disables garbage collection, which takes a third of the time of imports, until `end_imports`.

    Nor is wandb imported meanwhile, which timm does wherever it is installed.
    """
    gc.disable()
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # an import of it fails, as if it were missing


def end_imports() -> None:
    """Enables garbage collection for everything that is created from now on.

    Modules live as long as the process: collections that skip them take less time, and do not copy the pages that
    forked processes share.
    """
    if sys.modules.get("wandb", sys) is None:
        del sys.modules["wandb"]
    gc.enable()
    gc.freeze()
