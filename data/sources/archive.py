"""Common parts of zip and tar archives: shared reading, and labels from the folders inside.

Archives are read with `pread` at the offsets of an index. It uses no file position, so any number of processes can
share an archive.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from data.sources.base import check_classes
from data.sources.names import warn_of_nested
from utils.errors import DataError, listing

BLOCK = 1 << 24


class SharedFile:
    """Reads at given offsets; each process opens the file at its first read."""

    def __init__(self, path: Path):
        self._path, self._owner, self._descriptor = path, 0, -1

    def read(self, start: int, size: int) -> bytes:
        """Returns `size` bytes from `start`, fewer at the end of the file. Raises: OSError."""
        if self._owner != os.getpid():
            self._descriptor, self._owner = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)), os.getpid()
        return os.pread(self._descriptor, size, start)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return SharedFile, (self._path,)


def fill_page_cache(archive: Path, local_rank: int, local_size: int) -> None:
    """Reads this rank's part of a file, so that the system caches it for all processes of the machine."""
    begin, end = (archive.stat().st_size * part // local_size for part in (local_rank, local_rank + 1))
    with open(archive, "rb", buffering=0) as file:
        file.seek(begin)
        while begin < end and (data := file.read(min(BLOCK, end - begin))):
            begin += len(data)


def below_split(names: list[str], split: str) -> list[str]:
    """Strips a folder named after the split if all names are in it."""
    inside = all(name.startswith(f"{split}/") for name in names)
    return [name.removeprefix(f"{split}/") for name in names] if inside else names


def label_by_folder(
    names: list[str], class_names: Sequence[str] | None, where: Path
) -> tuple[list[str], list[int], list[str]]:
    """Returns names, labels and class names of images in class folders. Raises: DataError for images outside."""
    flat = [name for name in names if "/" not in name]
    if flat or not names:
        problem = f"images without a class folder: {listing(flat)}" if flat else "no images"
        raise DataError(str(where), problem, "pack one folder per class, or add a map of labels")
    own = [name.partition("/")[0] for name in names]
    found = sorted(set(own))
    warn_of_nested(names, where)
    chosen = list(found if class_names is None else class_names)
    check_classes(found, chosen, where)
    labels = {name: label for label, name in enumerate(chosen)}
    return names, [labels[name] for name in own], chosen
