"""The rank of this process, before it has met the others."""

import os
import time

PATIENCE = 10.0  # seconds


def launched_rank() -> int:
    """Returns the rank set by the launcher, 0 if there is none or it is not a number below WORLD_SIZE."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(rank) if rank.isdigit() and size.isdigit() and int(rank) < int(size) else 0


def let_main_rank_fail() -> bool:
    """Waits, on the other ranks, for the main rank to fail with the same error; the launcher then ends this rank.

    If another rank failed first, the launcher would end the main rank before it could report the error.
    Returns: whether this rank reports the error: the main rank, and the first one of every other machine, where it may
    be the only one, as when a file is missing.
    """
    if launched_rank() == 0:
        return True
    time.sleep(PATIENCE)
    return os.environ.get("LOCAL_RANK") == "0"
