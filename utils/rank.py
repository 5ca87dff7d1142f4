"""The rank of this process, before it has met the others."""

import os
import time

PATIENCE = 10.0  # seconds


def launched_rank() -> int:
    """Returns the rank set by the launcher, 0 if there is none or it is not a number below WORLD_SIZE."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(rank) if rank.isdigit() and size.isdigit() and int(rank) < int(size) else 0


def let_main_rank_fail() -> None:
    """Waits on the other ranks before they report an error that the main rank also finds: the launcher then ends them.

    It ends the main rank, unreported, if another fails first. Where the main rank lives on, as when a file is missing
    on one machine only, the others report it.
    """
    if launched_rank():
        time.sleep(PATIENCE)
