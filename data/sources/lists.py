"""Lists of labelled images: JSON lists of [path, label], or lines 'path<TAB>label'."""

import json
import logging
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from data.sources.base import IndexedSource, Store, check_label, label_limit, read_file
from data.sources.folders import FolderStorage
from data.sources.index import Index, Stamp, stamp, stored
from utils.errors import DataError, listing

log = logging.getLogger(__name__)

# ImageNet-22K's list, as named in the released recipes, and any other list
PATTERNS = ("ILSVRC2011fall_whole_map_{}.txt", "{}_map.txt")


@dataclass(frozen=True)
class Listed:
    """The contents of a list."""

    names: list[str]
    labels: list[int]
    class_names: list[str]


class ListStore(Store):
    """Images named by one list per split, relative to the data folder."""

    def __init__(self, root: Path):
        self._root = root

    def has(self, split: str) -> bool:
        return self._list(split).is_file()

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Opens a split. Raises: DataError for a missing list, or with file and line for an invalid entry."""
        path = self._list(split)
        if not path.is_file():
            raise DataError(str(path), "no such list of images", "write one line 'path<TAB>label' per image")

        def build() -> tuple[Index, list[str], list[Stamp]]:
            stamps = [stamp(path)]
            listed = read_list(path, classes, class_names)
            return Index.build(listed.names, listed.labels), listed.class_names, stamps

        key = f"list\0{path.resolve()}\0{classes}\0{chr(0).join(class_names or [])}"
        index, names = stored(key, build)
        return IndexedSource(index, names, FolderStorage(self._root, inside=True))

    def _list(self, split: str) -> Path:
        choices = [self._root / pattern.format(split) for pattern in PATTERNS]
        return next((path for path in choices if path.is_file()), choices[-1])


def read_list(path: Path, classes: int, class_names: Sequence[str] | None) -> Listed:
    """Reads a list.

    Class names are those given; otherwise the folders of the images if labels and folders correspond one to one;
    otherwise the labels as text. If the given names list those folders under different labels, the names take
    precedence: a subset may be renumbered.

    Args: classes: number of classes; 0 means the largest label plus one.
    Raises: DataError with file and line.
    """
    try:
        text = read_file(path).decode("utf-8-sig", "surrogateescape")
    except OSError as e:
        raise DataError(str(path), f"cannot be read: {e.strerror}", "check its permissions") from e
    entries = _from_json(text, path) if text.lstrip().startswith("[") else _from_lines(text, path)
    if not entries:
        raise DataError(str(path), "the list is empty", "write one line 'path<TAB>label' per image")
    names = [posixpath.normpath(safe_path(name, where)) for name, _, where in entries]
    labels = [label for _, label, _ in entries]
    folders = _folders(names, labels)
    if class_names is not None:
        labels = _by_name(labels, folders, class_names, path)
    known = len(class_names) if class_names is not None else classes
    limit = label_limit(known, len(labels))
    for label, (_, _, where) in zip(labels, entries, strict=True):
        check_label(label, limit, where, "correct it")
    numbered = [folders.get(i, str(i)) for i in range(known or max(labels) + 1)]
    return Listed(names, labels, list(class_names or numbered))


def _by_name(labels: list[int], folders: dict[int, str], class_names: Sequence[str], path: Path) -> list[int]:
    """Relabels images by folder if the class names list their folders. Raises: DataError if they list only some."""
    known = {name: label for label, name in enumerate(class_names)}
    own = {label: known[folder] for label, folder in folders.items() if folder in known}
    if all(label == other for label, other in own.items()):
        return labels
    unknown = [folder for folder in folders.values() if folder not in known]
    if unknown:
        label, other = next((label, other) for label, other in own.items() if label != other)
        problem = f"label {label} is {folders[label]}, which the class map lists as {other}"
        problem += f", and {len(unknown)} folders are missing from it: {listing(unknown)}"
        raise DataError(str(path), problem, "number the classes as in the class map")
    log.info("labels of %s: taken from the folders of its images, which the class map lists in a different order", path)
    return [own[label] for label in labels]


def safe_path(name: str, where: str) -> str:
    """Returns `name` unchanged. Raises: DataError if it could lead out of its root, or cannot name a file."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith("/") or PureWindowsPath(name).drive or ".." in parts or "\0" in name:
        raise DataError(where, f"the path {name!r} leads out of the data folder", "use paths relative to it")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as e:
        raise DataError(where, f"the path {name!r} is not text", "correct it") from e
    return name


def _from_json(text: str, path: Path) -> list[tuple[str, int, str]]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(str(path), f"not a JSON list ({e})", "write [path, label] for each image") from e
    for i, entry in enumerate(entries):
        good = isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[0], str)
        if not good or isinstance(entry[1], bool) or not isinstance(entry[1], int):
            raise DataError(f"{path}[{i}]", f"invalid entry {str(entry)[:80]}", "write [path, label]")
    return [(entry[0], entry[1], f"{path}[{i}]") for i, entry in enumerate(entries)]


def _from_lines(text: str, path: Path) -> list[tuple[str, int, str]]:
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip("\r")
        if not line.strip():
            continue
        name, tab, label = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
        try:
            entries.append((name, int(label), f"{path}:{number}"))
        except ValueError:
            name = ""
        if not name or not tab:
            raise DataError(f"{path}:{number}", f"invalid line {line[:80]!r}", "write 'path<TAB>label'")
    return entries


def _folders(names: Sequence[str], labels: Sequence[int]) -> dict[int, str]:
    """Returns the folder of each label; empty if they do not correspond one to one."""
    folders: dict[int, str] = {}
    for name, label in zip(names, labels, strict=True):
        parent = posixpath.basename(posixpath.dirname(name))
        if not parent or folders.setdefault(label, parent) != parent:
            return {}
    return folders if len(set(folders.values())) == len(folders) else {}
