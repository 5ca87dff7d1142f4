"""CSV and TSV files: one row per image, with its label or labels, and optionally its split, weight and group."""

import csv
import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data.sources.base import IndexedSource, Pool, Record, Store, check_classes, read_file
from data.sources.folders import FolderStorage
from data.sources.index import Index
from data.sources.names import check_heif, is_image
from utils.errors import ConfigError, DataError, did_you_mean, listing

log = logging.getLogger(__name__)
T = TypeVar("T")

SUFFIXES = (".csv", ".tsv", ".tab")
AUTO = "auto"
# usual names of columns, in lower case
USUAL = {
    "image": ("path", "image", "file_name", "filename", "file", "image_path", "img_path", "filepath", "img", "name"),
    "label": ("label", "labels", "class", "classes", "target", "targets", "category", "tags", "class_name"),
    "split": ("split", "set", "subset", "partition", "is_valid"),
    "weight": ("weight", "sample_weight"),
}
SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "false", "0"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "true", "1"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SEPARATORS = (";", "|", ",")  # between the labels of an image, tried in this order; names may contain blanks


@dataclass(frozen=True)
class Columns:
    """Names or positions, from 0, of the columns of a table; "auto" finds the usual names, "" ignores the column.

    `label_separator` between the labels of an image, "auto" for the first of `; | ,` that occurs; `several`:
    images have any number of labels; `group`: images of one value stay together when the table is divided.
    """

    image: str = AUTO
    label: str = AUTO
    split: str = AUTO
    weight: str = AUTO
    group: str = ""
    label_separator: str = AUTO
    several: bool = False

    def named(self, image: str, label: str) -> tuple[str, str]:
        """Returns the columns of images and labels. Args: their names where "auto" is configured."""
        return image if self.image == AUTO else self.image, label if self.label == AUTO else self.label


@dataclass(frozen=True)
class Rows:
    """The rows of a table by column; `lines`: their numbers; `classes`: the columns of a table with one per class."""

    images: list[str]
    labels: list[tuple[str, ...]]
    splits: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    def of(self, split: str) -> "Rows":
        """Returns the rows of one split."""
        kept = [i for i, own in enumerate(self.splits) if own == split]

        def part(column: list[T]) -> list[T]:
            return [column[i] for i in kept] if column else []

        return Rows(
            images=part(self.images),
            labels=part(self.labels),
            splits=part(self.splits),
            weights=part(self.weights),
            groups=part(self.groups),
            lines=part(self.lines),
            classes=self.classes,
        )


class SetSource(IndexedSource):
    """Images with any number of labels: the index holds the number of a set of labels; targets are tuples of labels."""

    def __init__(self, index: Index, class_names: Sequence[str], storage: Any, sets: Sequence[tuple[int, ...]]):
        super().__init__(index, class_names, storage)
        self._sets = tuple(sets)

    def __getitem__(self, i: int) -> Record:
        return super().__getitem__(i)._replace(target=self.labels_of(i))

    def labels_of(self, i: int) -> tuple[int, ...]:
        return self._sets[self.label(i)]

    def counts(self) -> list[int]:
        """Returns the number of samples with each label."""
        totals = [0] * len(self.class_names)
        for own, samples in zip(self._sets, self._index.counts(len(self._sets)), strict=True):
            for label in own:
                totals[label] += samples
        return totals

    def fingerprint(self) -> str:
        return self._index.digest([*self.class_names, *map(str, self._sets)])


class TableStore(Store):
    """A table with a column of splits. Test rows serve for validation if there are no others."""

    def __init__(self, table: "Table"):
        self._table = table

    def has(self, split: str) -> bool:
        return self._name(split) in self._table.rows.splits

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Opens a split. Raises: DataError if it has no rows, or with file and line for an invalid row."""
        if not self.has(split):
            problem = f"no row of the split {split}, only of {listing(sorted(set(self._table.rows.splits)))}"
            raise DataError(str(self._table.path), problem, "add some, or set TEST.VALIDATE to false")
        return self._table.source(self._table.rows.of(self._name(split)), class_names, classes)

    def _name(self, split: str) -> str:
        return "test" if split == "val" and "val" not in self._table.rows.splits else split


class TablePool(Pool):
    """A table without a column of splits."""

    def __init__(self, table: "Table"):
        self._table = table

    def open_whole(self, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        return self._table.source(self._table.rows, class_names, classes)


class Table:
    """A table of images; paths are relative to its folder. Raises: ConfigError, DataError with file and line."""

    def __init__(self, path: Path, columns: Columns):
        self.path, self._columns = path, columns
        self.rows = read_rows(path, columns)
        check_heif(self.rows.images)

    def store(self) -> Store | Pool:
        return TableStore(self) if self.rows.splits else TablePool(self)

    def source(self, rows: Rows, class_names: Sequence[str] | None, classes: int) -> IndexedSource:
        """Opens some of the rows. Args: as for `Store.open`."""
        found = self.rows.classes or _in_order({label for own in self.rows.labels for label in own})
        names = list(class_names) if class_names is not None else found
        used = {label for own in rows.labels for label in own}
        check_classes([name for name in found if name in used], names, self.path)
        labels = {name: label for label, name in enumerate(names)}
        own = [tuple(sorted({labels[name] for name in each})) for each in rows.labels]
        more: dict[str, Any] = {"weight": rows.weights} if rows.weights else {}
        if rows.groups:
            numbers = {name: number for number, name in enumerate(dict.fromkeys(rows.groups))}
            more["group"] = [numbers[name] for name in rows.groups]
        storage = FolderStorage(self.path.parent)
        if not self._columns.several:
            return IndexedSource(Index.build(rows.images, [each[0] for each in own], **more), names, storage)
        sets = sorted(set(own))
        number = {each: i for i, each in enumerate(sets)}
        return SetSource(Index.build(rows.images, [number[each] for each in own], **more), names, storage, sets)


def is_table(path: Path) -> bool:
    """Returns whether a dataset is a table, by the ending of its name."""
    return path.suffix.lower() in SUFFIXES


def read_rows(path: Path, columns: Columns) -> Rows:
    """Reads a table, with or without a header. Raises: ConfigError, DataError with file and line."""
    try:
        text = read_file(path).decode("utf-8-sig")
        lines = list(_lines(text, "\t" if path.suffix.lower() != ".csv" else _delimiter(text)))
    except UnicodeDecodeError as e:
        raise DataError(str(path), f"not UTF-8 text ({e.reason} at byte {e.start:,})", "save it as UTF-8") from e
    except csv.Error as e:
        raise DataError(str(path), f"not a table ({e})", "correct it") from e
    except OSError as e:
        raise DataError(str(path), f"cannot be read: {e.strerror}", "check the path and its permissions") from e
    if not lines:
        raise DataError(str(path), "the table is empty", "write one row per image: path,label")
    head = [] if _is_row(lines[0][1], path, columns) else [name.strip() for name in lines.pop(0)[1]]
    if not lines:
        raise DataError(str(path), "no rows below the header", "write one row per image: path,label")
    return _rows(lines, _Places(path, head, columns, lines), path, columns)


def _lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields number and cells of every line that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num, cells


def _delimiter(text: str) -> str:
    """Returns the delimiter of a .csv file: the most frequent of comma, semicolon and tab in the first line."""
    first = text.lstrip("\r\n").partition("\n")[0]
    return max((",", ";", "\t"), key=first.count)


def _is_row(cells: Sequence[str], path: Path, columns: Columns) -> bool:
    """Returns whether a line is an image and no header."""
    place = int(columns.image) if columns.image.isdigit() else 0
    name = cells[place].strip() if place < len(cells) else ""
    return is_image(name) or (bool(name) and (path.parent / name).is_file())


class _Places:
    """The column positions of a table; None for a column that it lacks.

    `classes`: columns of zeros and ones, one per class, if the table has these instead of a label column.
    """

    def __init__(self, path: Path, head: Sequence[str], columns: Columns, lines: Sequence[tuple[int, list[str]]]):
        self._path, self._head = path, head
        self.image = self._find("image", columns.image, "DATA.IMAGE_COLUMN", 0)
        label = self._find("label", columns.label, "DATA.LABEL_COLUMN", 1)
        self.split = self._find("split", columns.split, "DATA.SPLIT_COLUMN", None)
        self.weight = self._find("weight", columns.weight, "DATA.WEIGHT_COLUMN", None)
        self.group = self._find("group", columns.group, "DATA.GROUP_BY", None)
        if self.image is None:
            raise ConfigError(
                "DATA.IMAGE_COLUMN", f"{path} has the columns {listing(head, 8)}", "name that of the paths"
            )
        known = {self.image, self.split, self.weight, self.group}
        left = [place for place in range(len(head)) if place not in known]
        binary = columns.several and label is None and left and _are_binary(lines, left)
        self.classes = left if binary else []
        if label is None and not binary:
            raise ConfigError(
                "DATA.LABEL_COLUMN", f"{path} has the columns {listing(head, 8)}", "name that of the labels"
            )
        self.label = label

    def _find(self, what: str, given: str, key: str, without_head: int | None) -> int | None:
        if not given:
            return None
        if given == AUTO:
            if not self._head:
                return without_head
            lower = [name.lower() for name in self._head]
            return next((lower.index(name) for name in USUAL[what] if name in lower), None)
        if given in self._head:
            return self._head.index(given)
        if given.isdigit():
            return int(given)
        remedy = did_you_mean(given, self._head) if self._head else "the table has no header: set a position, from 0"
        raise ConfigError(key, f"{self._path} has no column {given!r}", remedy)


def _are_binary(lines: Sequence[tuple[int, list[str]]], places: Sequence[int]) -> bool:
    values = {cells[place].strip() for _, cells in lines for place in places if place < len(cells)}
    return values <= {"0", "1", "0.0", "1.0", ""}


def _rows(lines: Sequence[tuple[int, list[str]]], at: _Places, path: Path, columns: Columns) -> Rows:
    classes = [at._head[place] for place in at.classes]
    found = Rows([], [], classes=classes)
    separator = columns.label_separator
    if columns.several and separator == AUTO and at.label is not None:
        texts = [cells[at.label] for _, cells in lines if at.label < len(cells)]
        separator = next((each for each in SEPARATORS if any(each in text.strip() for text in texts)), "")
    needed = max(
        place for place in (at.image, at.label, at.split, at.weight, at.group, *at.classes) if place is not None
    )
    for number, cells in lines:
        where = f"{path}:{number}"
        if len(cells) <= needed:
            raise DataError(where, f"{len(cells)} cells, at least {needed + 1} are needed", "complete the row")
        found.images.append(_existing(cells[at.image].strip(), path, where))  # type: ignore[index]
        found.labels.append(_labels(cells, at, columns.several, separator, where))
        found.lines.append(number)
        if at.split is not None:
            found.splits.append(_split(cells[at.split], where))
        if at.weight is not None:
            found.weights.append(_weight(cells[at.weight], where))
        if at.group is not None:
            found.groups.append(cells[at.group].strip())
    return found


def _existing(name: str, path: Path, where: str) -> str:
    place = os.path.join(path.parent, name)
    if "\0" in name or not os.path.isfile(place):
        problem = f"no such image: {place!r}" if name else "no path"
        raise DataError(where, problem, f"correct it: paths are relative to {path.parent}")
    return name


def _labels(cells: Sequence[str], at: _Places, several: bool, separator: str, where: str) -> tuple[str, ...]:
    if at.classes:
        return tuple(at._head[place] for place in at.classes if cells[place].strip() in ("1", "1.0"))
    text = cells[at.label].strip()  # type: ignore[index]
    if several:
        parts = text.split(separator) if separator else [text]
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not text:
        raise DataError(where, "no label", "add one, or remove the row")
    return (text,)


def _split(cell: str, where: str) -> str:
    split = SPLITS.get(cell.strip().lower())
    if split is None:
        raise DataError(where, f"unknown split {cell[:40]!r}", "write train, val or test")
    return split


def _weight(cell: str, where: str) -> float:
    try:
        weight = float(cell)
    except ValueError:
        weight = float("nan")
    if not 0 <= weight < float("inf"):
        raise DataError(where, f"the weight {cell[:40]!r} is not a number, at least 0", "correct it")
    return weight


def _in_order(names: set[str]) -> list[str]:
    """Returns class names sorted, numbers by their value."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
