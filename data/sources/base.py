"""The interface of data sources: records by index."""

import copy
import errno
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data.sources.index import Index
from utils.errors import DataError, did_you_mean, listing

# permanent errors, not worth a retry
_PERMANENT = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
PAUSES = (0.1, 1.0)  # seconds before the second and the third attempt
MAX_BYTES = 1 << 30  # size of a file; Pillow decodes up to 179 million pixels, ImageNet-22K's list is 0.6 GB
MAX_LABELS = 100_000  # bound on labels, if the classes are unknown and there are fewer samples


class Record(NamedTuple):
    """A sample as stored: the bytes of an encoded image, its raw target, and its location for messages.

    `target` is task-specific: a label, the bytes of a label map, annotations, None.
    """

    data: bytes
    target: Any
    name: str


class Source(Protocol):
    """One split of a dataset. Pickled for loader workers, so its pickle should be small."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Record:
        """Reads a sample. Raises: DataError."""
        ...

    def name(self, i: int) -> str:
        """Returns the location of a sample, for messages."""
        ...

    def fingerprint(self) -> str:
        """Returns a digest of the names and targets of all samples."""
        ...


class LabelledSource(Source, Protocol):
    """One split with a class per image: the target of sample i is `label(i)`, its class `class_names[label(i)]`."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    def label(self, i: int) -> int: ...
    def labels_of(self, i: int) -> tuple[int, ...]:
        """Returns the classes of a sample: one, unless the dataset has several per image."""
        return (self.label(i),)

    def counts(self) -> list[int]:
        """Returns the number of samples of each class."""
        ...

    def column(self, name: str) -> NDArray[Any] | None:
        """Returns one value per sample (n,), such as "weight"; None if the dataset has no such column."""
        return None


class Store(Protocol):
    """A labelled dataset in one storage format, with the splits "train" and "val"."""

    def has(self, split: str) -> bool: ...
    def class_names(self, split: str) -> list[str]:
        """Returns the classes of this split, in label order. Raises: DataError."""
        return list(self.open(split).class_names)

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> LabelledSource:
        """Opens a split.

        Args: class_names: in label order, None for the split's own; classes: their number, 0 if unknown.
        Raises: DataError.
        """
        ...


class Pool(ABC):
    """A labelled dataset in one storage format, without splits."""

    @abstractmethod
    def open_whole(self, class_names: Sequence[str] | None = None, classes: int = 0) -> "IndexedSource":
        """Opens all samples. Args: as for `Store.open`. Raises: DataError."""


class Storage(Protocol):
    """Reads the bytes of indexed samples."""

    def read(self, index: Index, i: int) -> bytes:
        """Reads a sample. Raises: OSError, DataError."""
        ...

    def where(self, name: str) -> str:
        """Returns the path of a sample, for messages."""
        ...


class IndexedSource:
    """Samples listed by an index and read from a storage; without class names, targets are None."""

    def __init__(self, index: Index, class_names: Sequence[str], storage: Storage):
        self.class_names: tuple[str, ...] = tuple(class_names)
        self._index, self._storage = index, storage

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> Record:
        return Record(self._read(i), self.label(i) if self.class_names else None, self.name(i))

    def _read(self, i: int) -> bytes:
        return with_retries(lambda: self._storage.read(self._index, i), lambda: self.name(i))

    def label(self, i: int) -> int:
        return self._index.label(i)

    def labels_of(self, i: int) -> tuple[int, ...]:
        """Returns the classes of a sample."""
        return (self.label(i),)

    def name(self, i: int) -> str:
        return self._storage.where(self._index.name(i))

    def key(self, i: int) -> str:
        """Returns the name of a sample within the dataset, regardless of where the dataset is stored."""
        return self._index.name(i)

    def column(self, name: str) -> NDArray[Any] | None:
        """Returns an extra column of the index (n,), None if it has no such column."""
        return self._index.columns.get(name)

    def subset(self, chosen: NDArray[np.int64]) -> Self:
        """Returns a source with only the chosen samples. Args: chosen: their indices, ascending."""
        part = copy.copy(self)
        part._index = self._index.take(chosen)
        return part

    def counts(self) -> list[int]:
        return self._index.counts(len(self.class_names)) if self.class_names else []

    def fingerprint(self) -> str:
        return self._index.digest(self.class_names)


@contextmanager
def opening(path: object) -> Iterator[None]:
    """Converts file system errors when opening a dataset. Args: path: path of the dataset. Raises: DataError."""
    try:
        yield
    except OSError as e:
        problem = f"cannot be read: {e.strerror or e}"
        raise DataError(str(e.filename or path), problem, "check the path and its permissions") from e


def with_retries(read: Callable[[], bytes], name: Callable[[], str]) -> bytes:
    """Retries transient I/O errors (network file systems).

    Args: read: reads a sample; name: returns its location, for messages. Raises: DataError.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except OSError as e:
            if pause is None or e.errno in _PERMANENT:
                raise unreadable(name(), e) from e
            time.sleep(pause)
    raise AssertionError("unreachable")


def read_file(path: str | Path) -> bytes:
    """Returns the contents of an image, a list or another regular file.

    Raises: OSError; DataError for a device, or a file that is too large.
    """
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError(str(path), "not a regular file", "restore or remove it")
        check_size(status.st_size, path)
        return file.readall()


def check_size(size: int, name: object) -> None:
    """Checks the size of a file, as stored or unpacked. Raises: DataError if it exceeds `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise DataError(str(name), f"is too large: {size:,} bytes (at most {MAX_BYTES:,})", "remove it")


def label_limit(classes: int, samples: int) -> int:
    """Returns the exclusive upper bound on labels, so that an invalid label cannot cause a huge allocation.

    Args: classes: number of classes, 0 if unknown; samples: number of samples.
    """
    return classes or max(samples, MAX_LABELS)


def check_label(label: int, limit: int, where: str, remedy: str) -> None:
    """Raises: DataError if a label is negative, or not below `limit`."""
    if not 0 <= label < limit:
        bounds = "negative" if label < 0 else f"not in 0 to {limit - 1}"
        raise DataError(where, f"label {str(label)[:40]} is {bounds}", f"{remedy}, or MODEL.NUM_CLASSES")


def unreadable(name: str, error: OSError) -> DataError:
    """Returns the error for a sample that cannot be read."""
    few = error.errno in (errno.EMFILE, errno.ENFILE)
    remedy = "allow more open files with ulimit -n" if few else "restore or remove it"
    return DataError(name, f"cannot be read: {error.strerror or error}", remedy)


def check_classes(found: Sequence[str], known: Sequence[str], where: Path) -> None:
    """Raises: DataError if a class in `found` is not in `known`."""
    unknown = sorted(set(found) - set(known))
    if unknown:
        are = "1 class is" if len(unknown) == 1 else f"{len(unknown)} classes are"
        problem = f"{are} not among the {len(known)} training classes: {listing(unknown)}"
        remedy = f"rename or remove {'it' if len(unknown) == 1 else 'them'}"
        raise DataError(str(where), problem, did_you_mean(unknown[0], known, remedy))
