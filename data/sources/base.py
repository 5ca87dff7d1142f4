"""What every data set provides: samples by index."""

import errno
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data.sources.index import Index
from utils.errors import DataError, listing

# permanent errors: retrying would only take time
_PERMANENT = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
PAUSES = (0.1, 1.0)  # seconds before the second and the third attempt


class Source(Protocol):
    """One split of a data set; `class_names[label(i)]` is the class of sample i. Sent to loader workers by pickling."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def read(self, i: int) -> bytes:
        """Returns the encoded image. Raises: DataError if it cannot be read."""
        ...

    def label(self, i: int) -> int: ...
    def name(self, i: int) -> str:
        """Returns the location of the sample, for messages."""
        ...

    def counts(self) -> list[int]:
        """Returns the number of samples of each class."""
        ...

    def fingerprint(self) -> str:
        """Returns a digest of class names, sample names and labels."""
        ...


class Store(Protocol):
    """A data set in one form of storage, with the splits "train" and "val"."""

    def has(self, split: str) -> bool: ...
    def class_names(self, split: str) -> list[str]:
        """Returns the classes of this split alone, in label order. Raises: DataError."""
        ...

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> Source:
        """Opens a split.

        Args: class_names: in label order, None for the split's own; classes: how many, 0 if unknown.
        Raises: DataError.
        """
        ...


class Storage(Protocol):
    """The bytes of the samples of an index."""

    def read(self, index: Index, i: int) -> bytes:
        """Raises: OSError, DataError."""
        ...

    def where(self, name: str) -> str:
        """Returns the path of a sample, for messages."""
        ...


class IndexedSource:
    """Samples listed by an index and read from a storage."""

    def __init__(self, index: Index, class_names: Sequence[str], storage: Storage):
        self._class_names = tuple(class_names)
        self._index, self._storage = index, storage

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def __len__(self) -> int:
        return len(self._index)

    def read(self, i: int) -> bytes:
        """Retries transient I/O errors (network file systems)."""
        for pause in (*PAUSES, None):
            try:
                return self._storage.read(self._index, i)
            except OSError as e:
                if pause is None or e.errno in _PERMANENT:
                    raise DataError(f"cannot read an image ({e.strerror}): {self.name(i)}: restore or remove it") from e
                time.sleep(pause)
        raise AssertionError("unreachable")

    def label(self, i: int) -> int:
        return self._index.label(i)

    def name(self, i: int) -> str:
        return self._storage.where(self._index.name(i))

    def counts(self) -> list[int]:
        return self._index.counts(len(self.class_names)) if self.class_names else []

    def fingerprint(self) -> str:
        return self._index.digest(self.class_names)


def check_classes(found: Sequence[str], known: Sequence[str], where: Path) -> None:
    """Raises: DataError if a class that was found is not a known one."""
    strange = sorted(set(found) - set(known))
    if strange:
        raise DataError(
            f"{len(strange)} classes of {where} are not among the {len(known)} of training:"
            f" {listing(strange)}: rename or remove them"
        )
