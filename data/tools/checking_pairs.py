"""Checks a dataset of images with label maps for problems: decodes every file, compares sizes, values and contents."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.pipeline.decoding import decode, decode_bands, orientation
from data.pipeline.label_maps import histogram, read_label_map, shown
from data.sources.class_tables import ClassTable, class_table
from data.sources.folders import images_below
from data.sources.label_coding import CodingOptions, decide
from data.sources.pairs import PairSource, PairStore
from data.tools.checking import Report, describe_images, examine_all, find_copies
from utils.errors import DataError, count, listing, one_line
from utils.terminal import table_lines

LISTED = 40  # values in the table
SHOWN = 3  # names listed in a finding about many files


class Pair(NamedTuple):
    """What was found in an image and its label map: a `problem` or "", the digest of the image, (height, width), its
    EXIF `orientation`, and the pixels of each value."""

    name: str
    problem: str = ""
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    values: tuple[tuple[int, int], ...] = ()

    @property
    def unclear(self) -> bool:
        """Whether the sizes do not show that the label map follows the EXIF orientation of the image."""
        return self.orientation in (2, 3, 4) or (self.orientation > 4 and self.size[0] == self.size[1])


def has_pairs(root: Path) -> bool:
    """Returns whether a folder looks like images with label maps; text files of the same names annotate objects."""
    try:
        store = PairStore(root)
    except DataError:
        return False
    labels = store.root / store.labels
    return next(labels.rglob("*.txt"), None) is None or bool(images_below(labels).images)


def check_pairs(root: Path, workers: int, channels: int = 3) -> Report:
    """Checks the splits of images with label maps.

    Args: workers: number of decoding processes; channels: number of channels of the model (MODEL.SWIN.IN_CHANS).
    Raises: DataError.
    """
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
        found[split] = examine_all(_Examine(source, channels), len(source), workers)
        _describe(split, found[split], report)
    counts = {split: _values(pairs) for split, pairs in found.items()}
    _describe_values(counts, report)
    _check_classes(counts, table, CodingOptions(store.layout), report)
    digests = {split: [(pair.name, pair.digest) for pair in own if pair.digest] for split, own in found.items()}
    find_copies(digests, report)
    return report


class _Examine:
    """Decodes an image and its label map as training does, in a worker."""

    def __init__(self, source: PairSource, channels: int):
        self._source, self._channels = source, channels

    def __call__(self, i: int) -> Pair:
        name = self._source.name(i)
        try:
            data, target, _ = self._source[i]
            height, width = self._size(data, name)
            labels = read_label_map(target, self._source.label_name(i))
        except DataError as e:
            return Pair(name, f"{e.problem}: {e.subject}")
        turn = orientation(data)
        if labels.shape != (height, width):
            sizes = f"{labels.shape[1]}x{labels.shape[0]} for {width}x{height}"
            if turn > 4 and labels.shape == (width, height):
                sizes += ", as it ignores the EXIF orientation (DATA.EXIF ignore)"
            return Pair(name, f"a label map of another size than its image, {sizes}: {name}")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return Pair(name, "", digest, (height, width), turn, tuple(histogram([labels]).items()))

    def _size(self, data: bytes, name: str) -> tuple[int, int]:
        """Decodes an image; returns (height, width). Raises: DataError."""
        if self._channels == 3:
            return decode(data, name, upright=True).size[::-1]
        return decode_bands(data, name, self._channels, upright=True).shape[:2]


def _describe(split: str, found: Sequence[Pair], report: Report) -> None:
    report.findings += [pair.problem for pair in found if pair.problem]
    good = [pair for pair in found if not pair.problem]
    report.facts.append(f"{split}: {count(len(found), 'image')} with label maps")
    sizes = [(pair.name, pair.size, pair.orientation != 1) for pair in good]
    describe_images(sizes, report, f"{split} sizes")
    unclear = [pair.name for pair in good if pair.unclear]
    if unclear:
        what = "turned images whose label maps may follow the stored pixels: compare them, and set DATA.EXIF"
        report.findings.append(f"{what}, {len(unclear)}: {listing(unclear, SHOWN)}")


def _values(pairs: Sequence[Pair]) -> Counter[int]:
    """Returns the pixels of each value in a split."""
    counts: Counter[int] = Counter()
    for pair in pairs:
        counts.update(dict(pair.values))
    return counts


def _check_classes(
    counts: Mapping[str, Counter[int]], table: ClassTable, options: CodingOptions, report: Report
) -> None:
    """Decides the class of every value as training does; an error is a finding."""
    values = sorted(set().union(*counts.values()))
    if not values:
        return
    try:
        report.facts.append(decide(values, table, options)[1])
    except DataError as e:
        report.findings.append(one_line(e))


def _describe_values(counts: Mapping[str, Counter[int]], report: Report) -> None:
    """Adds a table of the values and their pixels; values in one split only are findings."""
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
