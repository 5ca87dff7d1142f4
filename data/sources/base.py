"""The interface of data sources: records by index."""

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.sources.index import Index
from utils.errors import DataError, did_you_mean, listing

# permanent errors, not worth a retry
_PERMANENT = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
PAUSES = (0.1, 1.0)  # seconds before the second and the third attempt
MAX_BYTES = 1 << 30  # of a file; Pillow decodes up to 179 million pixels, ImageNet-22K's list has 0.6 GB
MAX_LABELS = 100_000  # classes, if their number is unknown and there are fewer samples


class Record(NamedTuple):
    """A sample as stored: the bytes of an encoded image, its raw target, and its location for messages.

    `target` is task-specific: a label, the bytes of a label map, annotations, None.
    """

    data: bytes
    target: Any
    name: str


class Source(Protocol):
    """One split of a dataset. Pickled for loader workers, so it should pickle small."""

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
    def counts(self) -> list[int]:
        """Returns the number of samples of each class."""
        ...


class Store(Protocol):
    """A labelled dataset in one storage format, with the splits "train" and "val"."""

    def has(self, split: str) -> bool: ...
    def class_names(self, split: str) -> list[str]:
        """Returns the classes of this split, in label order. Raises: DataError."""
        return list(self.open(split).class_names)

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> LabelledSource:
        """Opens a split.

        Args: class_names: in label order, None for the split's; classes: their number, 0 if unknown.
        Raises: DataError.
        """
        ...


class Storage(Protocol):
    """The bytes of the samples of an index."""

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
        """Retries transient I/O errors (network file systems)."""
        for pause in (*PAUSES, None):
            try:
                return self._storage.read(self._index, i)
            except OSError as e:
                if pause is None or e.errno in _PERMANENT:
                    raise unreadable(self.name(i), e) from e
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


@contextmanager
def opening(path: object) -> Iterator[None]:
    """Converts errors of the file system while a dataset is opened. Args: path: of the dataset. Raises: DataError."""
    try:
        yield
    except OSError as e:
        problem = f"cannot be read: {e.strerror or e}"
        raise DataError(str(e.filename or path), problem, "check the path and its permissions") from e


def read_file(path: str | Path) -> bytes:
    """Returns the contents of an image, a list or another regular file.

    Raises: OSError; DataError for a device, or too large a file.
    """
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError(str(path), "not a regular file", "restore or remove it")
        check_size(status.st_size, path)
        return file.readall()


def check_size(size: int, name: object) -> None:
    """Raises: DataError if a file has more bytes, as stored or unpacked, than any that could be used."""
    if size > MAX_BYTES:
        raise DataError(str(name), f"{size:,} bytes are too many (at most {MAX_BYTES:,})", "remove it")


def label_limit(classes: int, samples: int) -> int:
    """Returns the label that is too large, so that a wrong one does not make an array of its size.

    Args: classes: their number, 0 if unknown; samples: their number.
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
        problem = f"{are} not among the {len(known)} of training: {listing(unknown)}"
        remedy = f"rename or remove {'it' if len(unknown) == 1 else 'them'}"
        raise DataError(str(where), problem, did_you_mean(unknown[0], known, remedy))
