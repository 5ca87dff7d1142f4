"""What is wrong with the data, and where."""

from collections.abc import Sequence


class DataError(Exception):
    """Missing folders, classes that do not fit, images that cannot be read: what, which file, what to do."""

    exit_code = 3


class LoaderError(DataError):
    """A loader process that died, or has no room to work."""

    exit_code = 7


def some(names: Sequence[str], count: int = 5) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
