"""Common code for zip and tar archives: shared reading, and labels from the folders inside.

Archives are read with `pread` at the offsets of an index. `pread` uses no file position, so any number of processes can
share an archive.
"""

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from data.sources.base import check_classes
from data.sources.names import warn_of_nested
from utils.errors import DataError, listing

BLOCK = 1 << 24
OTHER_FILES = 128  # file descriptors that the program needs for other files


class SharedFiles:
    """Reads files at given offsets.

    Each process opens a file at its first read, and closes the least recently used one when it has too many open.
    """

    def __init__(self, paths: Sequence[Path]):
        self._paths, self._owner = tuple(paths), 0
        self._open: dict[int, int] = {}  # file -> descriptor; the least recently used comes first

    def read(self, file: int, start: int, size: int) -> bytes:
        """Returns `size` bytes from `start`, fewer at the end of the file. Raises: OSError."""
        if self._owner != os.getpid():
            self._open, self._owner = {}, os.getpid()
        descriptor = self._open.pop(file, -1)
        if descriptor < 0:
            if len(self._open) >= _most_open():
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.open(self._paths[file], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._open[file] = descriptor
        return os.pread(descriptor, size, start)

    def __reduce__(self) -> tuple[type, tuple[tuple[Path, ...]]]:
        return SharedFiles, (self._paths,)


def _most_open() -> int:
    """Returns the number of archives that a split may keep open: with both splits open, `OTHER_FILES` are left."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(8, (limit - OTHER_FILES) // 2)


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
