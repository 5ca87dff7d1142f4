"""What every data set offers: samples by number."""

import errno
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data.errors import DataError, some
from data.sources.index import Index

# errors that stay: another try would only take time
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
PAUSES = (0.1, 1.0)  # seconds before the second and the third try


class Source(Protocol):
    """Samples by number; `class_names[label(i)]` is the class of sample i. Goes to other processes by pickling."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def read(self, number: int) -> bytes:
        """The encoded image. Raises: DataError if it cannot be read."""
        ...

    def label(self, number: int) -> int: ...
    def name(self, number: int) -> str:
        """Where the sample lies, for messages."""
        ...

    def counts(self) -> list[int]:
        """Samples of each class."""
        ...

    def fingerprint(self) -> str:
        """Digest of class names, sample names and labels."""
        ...


class Storage(Protocol):
    """Bytes of the samples of an index."""

    def read(self, index: Index, number: int) -> bytes:
        """Raises: OSError, DataError."""
        ...

    def where(self, name: str) -> str:
        """Path of a sample, for messages."""
        ...


class IndexedSource:
    """Samples that an index lists and a storage holds."""

    def __init__(self, index: Index, class_names: Sequence[str], storage: Storage):
        self._class_names = tuple(class_names)
        self._index, self._storage = index, storage

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def __len__(self) -> int:
        return len(self._index)

    def read(self, number: int) -> bytes:
        """A read error that goes away by itself, as on network disks, is waited for."""
        for pause in (*PAUSES, None):
            try:
                return self._storage.read(self._index, number)
            except OSError as e:
                if pause is None or e.errno in _LASTING:
                    raise DataError(
                        f"cannot read an image ({e.strerror}): {self.name(number)}: restore or remove it"
                    ) from e
                time.sleep(pause)
        raise AssertionError("unreachable")

    def label(self, number: int) -> int:
        return self._index.label(number)

    def name(self, number: int) -> str:
        return self._storage.where(self._index.name(number))

    def counts(self) -> list[int]:
        return self._index.counts(len(self.class_names))

    def fingerprint(self) -> str:
        return self._index.digest(self.class_names)


def check_classes(found: Sequence[str], known: Sequence[str], where: Path) -> None:
    """Raises: DataError if a class that was found is none of the known ones."""
    strange = sorted(set(found) - set(known))
    if strange:
        raise DataError(
            f"{len(strange)} classes of {where} are not among the {len(known)} of training:"
            f" {some(strange)}: rename or remove them"
        )
