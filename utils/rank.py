"""The rank of this process, before it has met the others."""

import os


def launched_rank() -> int:
    """Returns the rank set by the launcher, 0 if there is none or it is not a number below WORLD_SIZE."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(rank) if rank.isdigit() and size.isdigit() and int(rank) < int(size) else 0
