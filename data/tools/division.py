"""Divides a dataset that has no splits: stratified, reproducible, with related images in the same split."""

import csv
import hashlib
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from data.sources.base import IndexedSource, LabelledSource, Pool, Store, read_file
from data.sources.index import Index, Stamp, stored
from data.tools.duplicates import joined, near_duplicates
from utils.errors import ConfigError, DataError, count

log = logging.getLogger(__name__)
SPLIT_FILE = "split.csv"  # in the output folder of a run


@dataclass(frozen=True)
class DivisionOptions:
    """How to divide a dataset without splits.

    `fraction` held out for validation; `seed` of the choice; `group_by`: images that belong together: "prefix:CHARS",
    the file name up to CHARS; "regex:PATTERN", the first group of the pattern; "column:NAME" of a table; "": none;
    `duplicates`: whether near-duplicates belong together; `known`: the split of every file of an earlier division;
    `evaluates`: evaluation only: of the dataset that was divided, the files held out; of any other, all.
    """

    fraction: float = 0.2
    seed: int = 0
    group_by: str = ""
    duplicates: bool = True
    known: Mapping[str, str] | None = None
    evaluates: bool = False


class DividedStore(Store):
    """The splits "train" and "val" of a dataset without splits."""

    def __init__(self, pool: Pool, options: DivisionOptions):
        self._pool, self._options = pool, options
        self.splits: dict[str, str] = {}  # by name within the dataset: a class map changes the order

    def has(self, split: str) -> bool:
        return True

    def class_names(self, split: str) -> list[str]:
        return list(self._pool.open_whole().class_names)

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> LabelledSource:
        """Opens a split. Raises: DataError if it would be empty."""
        whole = self._pool.open_whole(class_names, classes)
        if not self.splits:
            self.splits = splits_of(whole, self._options)
        found = [i for i in range(len(whole)) if self.splits.get(whole.key(i)) == split]
        if not found:
            problem = f"no image is left for {split} of {count(len(whole), 'image')}"
            raise DataError("DATA.SPLIT", problem, "add images, or change it")
        return whole.subset(np.array(found))


def divided(store: Store | Pool, options: DivisionOptions) -> Store:
    """Returns `store`, or the division of a dataset without splits."""
    return DividedStore(store, options) if isinstance(store, Pool) else store


def splits_of(source: IndexedSource, options: DivisionOptions) -> dict[str, str]:
    """Returns the split of each sample, keyed by its name within the dataset: "train", "val", or "" for neither."""
    known, names = options.known or {}, [source.key(i) for i in range(len(source))]
    splits = [known.get(name, "") for name in names]
    if options.evaluates:
        splits = _evaluated(splits, len(known))
    elif not options.fraction:
        splits = ["train"] * len(splits)
    else:
        new = splits.count("")
        splits = _divided(source, splits, options) if new else splits
        if new and known:
            added = count(new, "image was", "images were")
            log.warning("%s added since the start of the run: divided by the same rule", added)
        held_out = f"{splits.count('val'):,} of {count(len(splits), 'image')}"
        log.info("the dataset has no splits: %s are held out for validation (DATA.SPLIT)", held_out)
    return dict(zip(names, splits, strict=True))


def _evaluated(splits: list[str], known: int) -> list[str]:
    """Returns "val" for the samples to evaluate, given "val" for those held out. Args: known: number held out."""
    found, size = splits.count("val"), count(len(splits), "image")
    if not known:
        log.warning("the weights list no held-out images: all %s are evaluated, also any they were trained on", size)
    elif 2 * found < known:
        log.warning("it is not the dataset that was divided for training: all %s are evaluated", size)
    else:
        log.info(
            "evaluated: %d of %d images held out in training; the other %d are not", found, known, len(splits) - found
        )
        return splits
    return ["val"] * len(splits)


def _divided(source: IndexedSource, splits: Sequence[str], options: DivisionOptions) -> list[str]:
    """Divides the samples without a split; those related to samples with one get the same."""
    groups = _cached_groups(source, options)
    inherited: dict[int, str] = {}
    for group, split in zip(groups, splits, strict=True):
        if split:
            inherited.setdefault(group, split)
    result = [split or inherited.get(group, "") for group, split in zip(groups, splits, strict=True)]
    new = [i for i, split in enumerate(result) if not split]
    shares = [1 - options.fraction, options.fraction]
    own = (
        [source.labels_of(i) for i in new],
        [groups[i] for i in new],
        shares,
        options.seed,
        [source.key(i) for i in new],
    )
    for i, part in zip(new, divide(*own), strict=True):
        result[i] = "val" if part else "train"
    return result


def format_splits(splits: Mapping[str, str]) -> str:
    """Returns the text of the list of a division: a line per file, and its split."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "split"))
    writer.writerows(splits.items())
    return text.getvalue()


def read_splits(path: Path) -> dict[str, str]:
    """Reads a list of `format_splits`; empty if there is none. Raises: DataError."""
    if not path.exists():
        return {}
    try:
        head, *rows = csv.reader(io.StringIO(read_file(path).decode("utf-8", "surrogateescape"), newline=""))
        splits = {name: split for name, split in rows}  # noqa: C416 (checks the number of cells)
        if head != ["path", "split"] or not set(splits.values()) <= {"train", "val"}:
            raise ValueError("it needs lines of path,split")
    except (OSError, ValueError, csv.Error) as e:
        raise DataError(str(path), f"the list of the split cannot be read ({e})", "restore or remove it") from e
    return splits


def _cached_groups(source: IndexedSource, options: DivisionOptions) -> list[int]:
    """Returns the group of each sample (see `related`), found once for each dataset and rule."""
    rule = json.dumps([options.group_by, options.duplicates])

    def build() -> tuple[Index, None, list[Stamp]]:
        groups = related(source, options.group_by, options.duplicates)
        return Index.build([f"{i:012}" for i in range(len(groups))], [0] * len(groups), group=groups), None, []

    index, _ = stored(f"groups\0{source.fingerprint()}\0{rule}", build)
    return index.columns["group"].tolist()


def related(source: IndexedSource, group_by: str, duplicates: bool) -> list[int]:
    """Returns the group of each sample; samples of a group belong together. Raises: ConfigError."""
    groups = _named_groups(source, group_by) if group_by else []
    if duplicates:
        found = near_duplicates(source)
        if found:
            log.info(
                "near-duplicates: %s in %s stay together",
                count(sum(map(len, found)), "image"),
                count(len(found), "group"),
            )
        groups += found
    return joined(len(source), groups)


def _named_groups(source: IndexedSource, group_by: str) -> list[list[int]]:
    kind, _, rule = group_by.partition(":")
    column = source.column("group") if kind == "column" else None
    if kind == "column" and column is None:
        raise ConfigError("DATA.GROUP_BY", f"the dataset has no column {rule!r}", "set it to a column of the table")
    pattern = re.compile(rule if kind == "regex" else f"(.*?){re.escape(rule)}")
    found = defaultdict(list)
    for i in range(len(source)):
        if column is not None:
            found[str(column[i])].append(i)
        elif match := pattern.search(PurePath(source.key(i)).name):
            found[match[1] if pattern.groups else match[0]].append(i)
        else:
            found[source.key(i)].append(i)
    if len(found) == len(source):
        raise ConfigError("DATA.GROUP_BY", f"{group_by} puts every image into a separate group", "correct it")
    return list(found.values())


def divide(
    labels: Sequence[Sequence[int]],
    groups: Sequence[int],
    shares: Sequence[float],
    seed: int,
    names: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Divides samples into parts, stratified by label (iterative stratification, Sechidis et al. 2011).

    The rarest label is distributed first, each of its groups to the part that lacks most of it. A label in at least
    as many groups as there are parts is in every part, unless its groups were distributed with rarer labels.

    Args: labels of each sample, any number; groups: equal for samples of one part; shares: of the parts, sum 1; seed;
    names: of the samples, from which their order is drawn; None: their numbers.
    Returns: the part of each sample: int64 (n,).
    """
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    by_label = defaultdict(set)
    for i, own in enumerate(labels):
        for label in own or (-1,):  # samples without a label are a stratum as well
            by_label[label].add(groups[i])
    counts = {group: _count(labels[i] or (-1,) for i in own) for group, own in members.items()}
    wanted = {label: _targets(found, counts, label, shares) for label, found in by_label.items()}
    total = np.array(shares) * len(labels)
    order = {group: _drawn(seed, min(names[i] if names else str(i) for i in own)) for group, own in members.items()}
    parts = np.zeros(len(labels), dtype=np.int64)
    present: dict[int, set[int]] = defaultdict(set)
    for label in sorted(by_label, key=lambda label: (len(by_label[label]), label)):
        left = sorted(by_label[label] & counts.keys(), key=lambda group: (-counts[group][label], order[group]))
        for place, group in enumerate(left):
            absent = [part for part in range(len(shares)) if part not in present[label]]
            choices = absent if len(left) - place <= len(absent) else range(len(shares))
            part = max(choices, key=lambda part: (wanted[label][part], total[part]))
            parts[members[group]] = part
            total[part] -= len(members[group])
            for other, times in counts.pop(group).items():
                wanted[other][part] -= times
                present[other].add(part)
    return parts


def _drawn(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()


def _count(sets: object) -> dict[int, int]:
    found: dict[int, int] = defaultdict(int)
    for own in sets:  # type: ignore[attr-defined]
        for label in own:
            found[label] += 1
    return found


def _targets(
    groups: set[int], counts: Mapping[int, Mapping[int, int]], label: int, shares: Sequence[float]
) -> NDArray[np.float64]:
    """Returns the number of samples of a label wanted in each part: whole numbers, at least one where possible."""
    size = sum(counts[group][label] for group in groups)
    exact = np.array(shares) * size
    targets = np.floor(exact)
    if len(groups) >= len(shares):
        targets = np.maximum(targets, 1)
    while targets.sum() < size:  # largest remainder
        targets[np.argmax(exact - targets)] += 1
    while targets.sum() > size:
        targets[np.argmax(targets)] -= 1
    return targets
