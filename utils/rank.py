"""The rank of this process, before the rendezvous."""

import os
import time

PATIENCE = 10.0  # seconds that rank 0 has to report an error that all ranks share


def launched_rank() -> int:
    """Returns the rank set by the launcher, or 0 if there is none or it is not a number below WORLD_SIZE."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(rank) if rank.isdigit() and size.isdigit() and int(rank) < int(size) else 0


def let_main_rank_fail() -> bool:
    """Delays, on ranks other than 0, an error that rank 0 is expected to raise too.

    Otherwise the launcher could terminate rank 0 before it reports the error.
    Returns: whether this rank reports the error: the main rank, and the first one on every other machine, since a
    missing file may affect that machine only.
    """
    if launched_rank() == 0:
        return True
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    time.sleep(PATIENCE if first else 6 * PATIENCE)  # the others report nothing: rank 0 must not be terminated for them
    return first
