"""Names and labels of all samples as arrays, cached on disk, so that a second start does not walk a million files."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import atomic_path

log = logging.getLogger(__name__)

FORMAT = 2  # of the cached files; an index of another format is rebuilt
BYTES_AT_ONCE = 1 << 24

# what an index was built from: [path, inode, change time in ns] of every folder or file
Stamp = list[Any]


class Index:
    """Name, label and further columns of every sample.

    Arrays rather than Python objects: a million names take 40 MB, and loader workers share them through the page
    cache.

    Args: text: uint8, all names concatenated; ends: int64 (n,), where each name ends; labels: int32 (n,); columns:
    further arrays (n,).
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray, labels: np.ndarray, columns: dict[str, np.ndarray]):
        self._text, self._ends, self.labels, self.columns = text, ends, labels, columns
        self._folder: Path | None = None

    @classmethod
    def build(cls, names: Sequence[str], labels: Sequence[int], **columns: Sequence[int]) -> "Index":
        """Sorts by label, then name: the same samples give the same index, however they are stored.

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
            {name: np.asarray(column, dtype=np.int64)[order] for name, column in columns.items()},
        )

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, i: int) -> str:
        start = int(self._ends[i - 1]) if i else 0
        return os.fsdecode(self._text[start : int(self._ends[i])].tobytes())

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def counts(self, classes: int) -> list[int]:
        """Returns the number of samples of each class."""
        return np.bincount(self.labels, minlength=classes).tolist()

    def digest(self, class_names: Sequence[str]) -> str:
        """Returns the SHA-256 over class names, sample names and labels, in order."""
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
    """Returns the cached index of `key` if nothing it was built from has changed; otherwise builds and caches it.

    Args: key: identifies the index, for instance by an absolute path; build: returns the index, a JSON-serialisable
    value, and the stamps of the files and folders it read.
    Returns: the index and the value. Raises: what `build` raises.
    """
    name = hashlib.sha256(f"{FORMAT}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    folder = cache_folder() / name
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if all(stamp(then[0]) == then for then in meta["stamps"]):
            return _load(folder), meta["extra"]
    except (OSError, ValueError, KeyError):
        pass  # not cached, incomplete, or the data are gone: build reports what is wrong
    index, extra, stamps = build()
    try:
        _store(folder, index, {"key": key, "extra": extra, "stamps": stamps})
        return _load(folder), extra
    except OSError as e:
        log.warning("cannot cache the list of samples (%s): %s: it will be rebuilt next time", e.strerror, folder)
        return index, extra


def stamp(path: str | Path) -> Stamp:
    """Returns [path, inode, change time], which changes when files of a folder are added, removed or renamed."""
    status = os.stat(path)
    return [str(path), status.st_ino, status.st_ctime_ns]


def cache_folder() -> Path:
    """Returns the folder of cached indices: below XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swin" / "index"


def _load(folder: Path) -> Index:
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    index = Index(arrays.pop("text"), arrays.pop("ends"), arrays.pop("labels"), arrays)
    index._folder = folder
    return index


def _store(folder: Path, index: Index, meta: dict[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            arrays = {"text": index._text, "ends": index._ends, "labels": index.labels, **index.columns}
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        if not (folder / "meta.json").exists():  # else another process has just stored it
            raise
