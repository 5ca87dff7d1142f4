"""Names and labels of all samples as arrays, cached on disk to avoid walking a million files at every start."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.files import atomic_path, cache_folder

log = logging.getLogger(__name__)

FORMAT = 5  # version of the cached files and of the rules for names; an index of another version is rebuilt
BYTES_AT_ONCE = 1 << 24
UNUSED = 30 * 24 * 3600.0  # seconds after which an unused index is removed

# [path, inode, change time in ns] of a folder or file from which an index was built
Stamp = list[Any]


class Index:
    """Name, label and other columns of every sample.

    Stored as arrays: a million names take 40 MB, and loader workers share them through the page cache.

    Args: text: uint8, all names concatenated; ends: int64 (n,), the end of each name; labels: int32 (n,); columns:
    other arrays (n,).
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray, labels: np.ndarray, columns: dict[str, np.ndarray]):
        self._text, self._ends, self.labels, self.columns = text, ends, labels, columns
        self._folder: Path | None = None

    @classmethod
    def build(cls, names: Sequence[str], labels: Sequence[int], **columns: Sequence[float]) -> "Index":
        """Sorts by label, then name: the index depends only on the samples, not on their storage.

        Names may contain any bytes that the file system allows.
        """
        raw = [os.fsencode(name) for name in names]
        order = sorted(range(len(raw)), key=lambda i: (labels[i], raw[i]))
        encoded = [raw[i] for i in order]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(
            text,
            ends,
            np.asarray(labels, dtype=np.int32)[order],
            {name: np.asarray(column)[order] for name, column in columns.items()},
        )

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, i: int) -> str:
        start = int(self._ends[i - 1]) if i else 0
        return os.fsdecode(self._text[start : int(self._ends[i])].tobytes())

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def take(self, chosen: NDArray[np.int64]) -> "Index":
        """Returns the index of some of the samples. Args: chosen: their indices, ascending."""
        starts = np.concatenate([[0], self._ends[:-1]])[chosen]
        lengths = self._ends[chosen] - starts
        ends = np.cumsum(lengths, dtype=np.int64)
        # position of every byte: where its name starts, plus its place within the name
        places = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return Index(self._text[places], ends, self.labels[chosen], columns)

    def counts(self, classes: int) -> list[int]:
        """Returns the number of samples of each class."""
        return np.bincount(self.labels, minlength=classes).tolist()

    def digest(self, class_names: Sequence[str]) -> str:
        """Returns the SHA-256 of class names, sample names and labels, in order."""
        digest = hashlib.sha256("\0".join(class_names).encode("utf-8", "surrogateescape"))
        for array in (self._ends, self.labels, self._text):
            for start in range(0, len(array), BYTES_AT_ONCE):
                digest.update(array[start : start + BYTES_AT_ONCE].tobytes())
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[Any, ...]]:
        """Pickles as its location on disk, if it has one."""
        if self._folder is not None:
            return _load, (self._folder,)
        return Index, (self._text, self._ends, self.labels, self.columns)


def stored(key: str, build: Callable[[], tuple[Index, Any, list[Stamp]]]) -> tuple[Index, Any]:
    """Returns the cached index of `key` if none of its stamps has changed; otherwise builds and caches it.

    Machines that share the cache but have different disks under the same path get different indices: a cache folder is
    named by the key and the stamps, and never changes.

    Args: key: identifies the index, for instance by an absolute path; build: returns the index, a JSON-serialisable
    value, and the stamps of the files and folders it read, taken before reading, so that the next start detects changes
    made in between.
    Returns: the index and the value. Raises: as for `build`.
    """
    name = _digest(f"{FORMAT}\0{key}")
    for folder in sorted(_cached(name), key=_used, reverse=True):
        try:
            extra, stamps = _load_meta(folder)
            if all(stamp(path) == [path, *then] for path, *then in stamps):
                index = _load(folder)
                os.utime(folder / "meta.json")
                return index, extra
        except (OSError, ValueError):
            continue  # incomplete, or another machine's data; `build` reports real errors
    index, extra, stamps = build()
    folder = cache_folder("index") / f"{name}-{_digest(json.dumps(stamps))}"
    try:
        _store(folder, index, {"key": key, "extra": extra, "stamps": stamps})
        _remove_unused(name)
        return _load(folder), extra
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        log.warning("cannot cache the list of samples in %s (%s); it will be rebuilt next time", folder, reason)
        return index, extra


def stamp(path: str | Path) -> Stamp:
    """Returns [path, inode, change time], which changes if files in a folder are added, removed or renamed."""
    status = os.stat(path)
    return [str(path), status.st_ino, status.st_ctime_ns]


def _cached(name: str) -> list[Path]:
    try:
        return list(cache_folder("index").glob(f"{name}-*"))
    except OSError:  # inaccessible; `_store` reports it
        return []


def _load(folder: Path) -> Index:
    """Loads an index. Raises: OSError, ValueError for a corrupt file."""
    with _corrupt_is_value_error(folder):
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        index = Index(arrays.pop("text"), arrays.pop("ends"), arrays.pop("labels"), arrays)
    index._folder = folder
    return index


def _load_meta(folder: Path) -> tuple[Any, list[Stamp]]:
    """Returns the value stored with an index, and the stamps. Raises: as for `_load`."""
    with _corrupt_is_value_error(folder):
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return meta["extra"], [[path, inode, changed] for path, inode, changed in meta["stamps"]]


@contextmanager
def _corrupt_is_value_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as e:  # NumPy and JSON raise anything
        raise ValueError(f"{folder.name} is corrupt: {type(e).__name__}") from e


def _store(folder: Path, index: Index, meta: dict[str, Any]) -> None:
    """Creates the folder; keeps one just created by another process and replaces an unreadable one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            arrays = {"text": index._text, "ends": index._ends, "labels": index.labels, **index.columns}
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    except OSError:
        if not folder.is_dir():
            raise
    try:
        _load_meta(folder)
        _load(folder)
    except (OSError, ValueError):
        unreadable = folder.with_name(f"{folder.name}.{os.getpid()}.unreadable")  # `_cached` ignores this name
        os.replace(folder, unreadable)
        shutil.rmtree(unreadable, ignore_errors=True)
        raise


def _remove_unused(name: str) -> None:
    """Removes indices of a key that have long been unused: their data has changed."""
    for folder in _cached(name):
        if _used(folder) < time.time() - UNUSED:
            shutil.rmtree(folder, ignore_errors=True)


def _used(folder: Path) -> float:
    try:
        return (folder / "meta.json").stat().st_mtime
    except OSError:
        return 0.0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
