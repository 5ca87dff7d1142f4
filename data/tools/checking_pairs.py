"""Checks a dataset of images with label maps for problems: decodes every file, compares sizes, values and contents."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.pipeline.decoding import decode, orientation
from data.pipeline.fork_server import worker_pool
from data.pipeline.label_maps import read_label_map, shown
from data.sources.class_tables import class_table
from data.sources.pairs import PairSource, PairStore
from data.tools.checking import Report, describe_images
from utils.errors import DataError, count, listing
from utils.terminal import table_lines, track

LISTED = 40  # values in the table
SHOWN = 3  # names listed in a finding about many files


class Pair(NamedTuple):
    """What was found in an image and its label map: a `problem` or "", the digest of the image, (height, width),
    whether EXIF orientation turns the image, and the pixels of each value."""

    name: str
    problem: str = ""
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    values: tuple[tuple[int, int], ...] = ()


def has_pairs(root: Path) -> bool:
    """Returns whether a folder looks like images with label maps."""
    try:
        return bool(PairStore(root).layout)
    except DataError:
        return False


def check_pairs(root: Path, workers: int) -> Report:
    """Checks the splits of images with label maps. Args: workers: number of decoding processes. Raises: DataError."""
    store, report = PairStore(root), Report()
    table = class_table(store.root, store.layout)
    report.facts.append(f"layout {store.layout}: {store.root}")
    if table.names:
        report.facts.append(
            f"{count(len(table.names), 'class', 'classes')} of {table.origin}: {listing(table.names, 20)}"
        )
    found: dict[str, list[Pair]] = {}
    for split in ("train", "val"):
        if not store.has(split):
            report.findings.append(f"no {split} images: {store.root}")
            continue
        try:
            source = store.open(split)
        except DataError as e:
            report.findings.append(f"{e.problem}: {e.subject}")
            continue
        found[split] = _examined(source, workers)
        _describe(split, found[split], report)
    _describe_values(found, report)
    _find_copies(found, report)
    return report


def _examined(source: PairSource, workers: int) -> list[Pair]:
    with worker_pool(workers) as pool:
        results = pool.map(_Examine(source), range(len(source)), chunksize=16)
        return list(track(results, "checking", len(source), "images"))


class _Examine:
    """Decodes an image and its label map as training does, in a worker."""

    def __init__(self, source: PairSource):
        self._source = source

    def __call__(self, i: int) -> Pair:
        name = self._source.name(i)
        try:
            data, target, _ = self._source[i]
            width, height = decode(data, name, upright=True).size
            labels = read_label_map(target, self._source.label_name(i))
        except DataError as e:
            return Pair(name, f"{e.problem}: {e.subject}")
        if labels.shape != (height, width):
            sizes = f"{labels.shape[1]}x{labels.shape[0]} for {width}x{height}"
            return Pair(name, f"a label map of another size than its image, {sizes}: {name}")
        values = tuple((int(v), int(n)) for v, n in zip(*np.unique(labels, return_counts=True), strict=True))
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return Pair(name, "", digest, (height, width), orientation(data) != 1, values)


def _describe(split: str, found: Sequence[Pair], report: Report) -> None:
    report.findings += [pair.problem for pair in found if pair.problem]
    good = [pair for pair in found if not pair.problem]
    report.facts.append(f"{split}: {count(len(found), 'image')} with label maps")
    describe_images([(pair.name, pair.size, pair.turned) for pair in good], report, f"{split} sizes")


def _describe_values(found: dict[str, list[Pair]], report: Report) -> None:
    """Adds a table of the values and their pixels; values in one split only are findings."""
    counts: dict[str, Counter[int]] = {split: Counter() for split in found}
    for split, pairs in found.items():
        for pair in pairs:
            counts[split].update(dict(pair.values))
    values = sorted(set().union(*counts.values()))
    totals = {split: max(1, own.total()) for split, own in counts.items()}
    rows = [[shown(v), *(f"{100 * own[v] / totals[split]:.3g}%" for split, own in counts.items())] for v in values]
    report.facts += table_lines(["value", *counts], rows[:LISTED])
    if len(rows) > LISTED:
        report.facts.append(f"... {len(rows) - LISTED} more values")
    if len(counts) == 2:
        for here, there in (("train", "val"), ("val", "train")):
            alone = [shown(value) for value in values if counts[here][value] and not counts[there][value]]
            if alone:
                report.findings.append(f"values in {here} but not in {there}, {len(alone)}: {listing(alone)}")


def _find_copies(found: dict[str, list[Pair]], report: Report) -> None:
    """Reports images that are in both splits, and counts those that are twice in one."""
    copies: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for split, pairs in found.items():
        for pair in pairs:
            if pair.digest:
                copies[pair.digest].append((split, pair.name))
    again = sum(len(own) - 1 for own in copies.values())
    report.facts.append(f"{len(copies):,} distinct images, {count(again, 'duplicate')}")
    for (split, first), *others in copies.values():
        for other, name in others:
            if other != split:
                report.findings.append(f"the same image in train and val: {first}, {name}")
