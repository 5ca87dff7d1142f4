"""Names and labels of all samples as arrays, kept on disk, so that a second start does not walk a million files."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

FORMAT = 1  # of the files of a stored index; another number is built again
BYTES_AT_ONCE = 1 << 24

# what an index was made from: [path, inode, change time in ns] of every folder or file
Stamp = list[Any]


class Index:
    """Samples by number: a name, a label and further numbers of each.

    Arrays rather than Python objects: a million names take 40 MB, and loader processes share them through the page
    cache.

    Args: text: uint8, all names in a row; ends: int64 (n,), where each name ends in it; labels: int32 (n,);
    columns: further arrays (n,).
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray, labels: np.ndarray, columns: dict[str, np.ndarray]):
        self._text, self._ends, self.labels, self.columns = text, ends, labels, columns
        self._folder: Path | None = None

    @classmethod
    def build(cls, names: Sequence[str], labels: Sequence[int], **columns: Sequence[int]) -> "Index":
        """Sorted by label, then name: the same samples make the same index, however they are stored.

        Names may hold any bytes that the file system allows.
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

    def name(self, number: int) -> str:
        start = int(self._ends[number - 1]) if number else 0
        return os.fsdecode(self._text[start : int(self._ends[number])].tobytes())

    def label(self, number: int) -> int:
        return int(self.labels[number])

    def counts(self, classes: int) -> list[int]:
        """Samples of each class."""
        return np.bincount(self.labels, minlength=classes).tolist()

    def digest(self, class_names: Sequence[str]) -> str:
        """SHA-256 over class names, sample names and labels, all in order."""
        digest = hashlib.sha256("\0".join(class_names).encode("utf-8", "surrogateescape"))
        for array in (self._ends, self.labels, self._text):
            for start in range(0, len(array), BYTES_AT_ONCE):
                digest.update(array[start : start + BYTES_AT_ONCE].tobytes())
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[Any, ...]]:
        """To another process goes the place on disk, where there is one."""
        if self._folder is not None:
            return _load, (self._folder,)
        return Index, (self._text, self._ends, self.labels, self.columns)


def stored(key: str, build: Callable[[], tuple[Index, Any, list[Stamp]]]) -> tuple[Index, Any]:
    """The index that was stored under `key`, if nothing it was made from has changed; else a new one, then stored.

    Args: key: what tells this index from others, such as the absolute path; build: returns the index, anything that
    JSON can hold, and the stamps of what it looked at.
    Returns: the index and what went with it. Raises: what `build` raises.
    """
    name = hashlib.sha256(f"{FORMAT}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    folder = cache_folder() / name
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if all(stamp(then[0]) == then for then in meta["stamps"]):
            return _load(folder), meta["extra"]
    except (OSError, ValueError, KeyError):
        pass  # not stored, not whole, or the data are gone: build says what is wrong
    index, extra, stamps = build()
    try:
        _store(folder, index, {"key": key, "extra": extra, "stamps": stamps})
        return _load(folder), extra
    except OSError as e:
        log.warning("the list of samples cannot be kept (%s): %s: it is made again next time", e.strerror, folder)
        return index, extra


def stamp(path: str | Path) -> Stamp:
    """[path, inode, change time]: another one after files were added, removed or renamed in a folder."""
    status = os.stat(path)
    return [str(path), status.st_ino, status.st_ctime_ns]


def cache_folder() -> Path:
    """Where indexes are kept: below XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swin" / "index"


def _load(folder: Path) -> Index:
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    index = Index(arrays.pop("text"), arrays.pop("ends"), arrays.pop("labels"), arrays)
    index._folder = folder
    return index


def _store(folder: Path, index: Index, meta: dict[str, Any]) -> None:
    """Appears whole: another process may be looking."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        arrays = {"text": index._text, "ends": index._ends, "labels": index.labels, **index.columns}
        for name, array in arrays.items():
            np.save(unfinished / f"{name}.npy", array)
        (unfinished / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(unfinished, folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not (folder / "meta.json").exists():  # else another process has just stored it
            raise
