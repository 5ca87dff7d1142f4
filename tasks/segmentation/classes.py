"""The classes of a segmentation dataset: names, colours, and the class of every stored value."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data.pipeline.label_maps import (
    IGNORED,
    MAX_CLASSES,
    Colour,
    LabelCoding,
    code_of,
    default_colours,
    histogram,
    read_label_map,
    shown,
)
from data.sources.class_tables import CITYSCAPES_IDS, ClassTable
from data.sources.pairs import PairSource
from utils.errors import CheckpointError, DataError, count, listing
from utils.runs.provenance import DataInfo

log = logging.getLogger(__name__)
COUNTED = 500  # label maps whose pixels are counted, if the classes are known


@dataclass(frozen=True)
class SegmentationInfo(DataInfo):
    """`class_names` and `colours` in label order; `coding`: the class of every stored value."""

    class_names: tuple[str, ...] = ()
    colours: tuple[Colour, ...] = ()
    coding: LabelCoding = field(default_factory=lambda: LabelCoding({}), repr=False)

    def as_dict(self) -> dict[str, Any]:
        values = {str(value): label for value, label in self.coding.classes.items()}
        colours = [list(colour) for colour in self.colours]
        own = {"class_names": list(self.class_names), "class_colours": colours, "label_values": values}
        return {**own, **super().as_dict()}

    def check(self, saved: Mapping[str, Any], origin: Path, accept_changes: bool) -> None:
        names = saved.get("class_names")
        if names is not None and list(names) != list(self.class_names):
            pairs = enumerate(zip_longest(names, self.class_names, fillvalue="none"))
            label, (before, now) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
            problem = f"class {label} is {before} in the checkpoint and {now} in the data"
            raise CheckpointError(str(origin), problem, "use a different --tag, or fine-tune it with --pretrained")
        super().check(saved, origin, accept_changes)


def stored_classes(contents: Mapping[str, Any], classes: int) -> SegmentationInfo:
    """Returns the classes that a file stores, this program's or mmsegmentation's, else "class 0", ...

    Args: classes: number of outputs.
    """
    meta = contents.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    inner = meta.get("dataset_meta")
    theirs = inner if isinstance(inner, Mapping) else meta
    names = contents.get("class_names") or theirs.get("CLASSES") or theirs.get("classes") or ()
    colours = contents.get("class_colours") or theirs.get("PALETTE") or theirs.get("palette") or ()
    if len(names) != classes:
        names = [f"class {label}" for label in range(classes)]
    if len(colours) != classes:
        colours = default_colours(classes)
    triples: list[Any] = [tuple(map(int, colour)) for colour in colours]
    values = {int(value): int(label) for value, label in (contents.get("label_values") or {}).items()}
    return SegmentationInfo(class_names=tuple(map(str, names)), colours=tuple(triples), coding=LabelCoding(values))


@dataclass(frozen=True)
class CodingOptions:
    """`layout` of the dataset; `reduce_zero`: whether value 0 is ignored and the others are classes + 1, None to
    decide; `ignore`: a further value without a class, None for none."""

    layout: str = "folders"
    reduce_zero: bool | None = None
    ignore: int | None = None


def read_classes(source: PairSource, table: ClassTable, options: CodingOptions) -> SegmentationInfo:
    """Counts the values of label maps, logs them, and decides the class of each.

    All maps are read if the classes are unknown, else up to 500. Raises: DataError.
    """
    step = 1 if not table.names else max(1, len(source) // COUNTED)
    chosen = range(0, len(source), step)
    counts = histogram(read_label_map(source.labels(i), source.label_name(i)) for i in chosen)
    total = sum(counts.values())
    values = [f"{shown(value)} {100 * counts[value] / total:.3g}%" for value in sorted(counts)]
    log.info("label values of %s: %s", count(len(chosen), "map"), listing(values, 40))
    coding, line = decide(sorted(counts), table, options)
    classes = 1 + max((label for label in coding.classes.values() if label != IGNORED), default=-1)
    names = table.names or tuple(f"class {label}" for label in range(classes))
    present = {coding.classes[value] for value in counts}
    absent = [name for label, name in enumerate(names) if label not in present]
    if absent:
        log.warning("%d classes have no pixels in these maps: %s", len(absent), listing(absent))
    log.info("%s: %s", line, listing(names, 20))
    colours = table.colours or tuple(default_colours(len(names)))
    return SegmentationInfo(source.fingerprint(), names, colours, coding)


def decide(values: Sequence[int], table: ClassTable, options: CodingOptions) -> tuple[LabelCoding, str]:
    """Decides the class of every value; returns the coding and a log line. Raises: DataError.

    With a table of colours, these are the values. Else the values are the classes; 255 is ignored, unless 0 and 255 are
    the only values: a binary mask. One value more than known names is an error, except in ADE20K's layout: 0 has none.
    """
    if options.layout == "cityscapes_ids":
        given = dict.fromkeys(range(-1, 256), IGNORED) | {v: label for label, v in enumerate(CITYSCAPES_IDS)}
        return LabelCoding(given), "19 classes of Cityscapes' labelIds"
    classes = len(table.names)
    if table.colours:
        given = {code_of(colour): label for label, colour in enumerate(table.colours)}
    elif any(value > 65535 for value in values):
        problem = f"label maps with colours, such as {listing(map(shown, values[-3:]))}, but no colour table"
        raise DataError("DATA.CLASSES", problem, "list the classes in a file, one per line: name red green blue")
    elif set(values) == {0, 255} and classes in (0, 2) and not options.reduce_zero and options.ignore is None:
        return LabelCoding({0: 0, 255: 1}), "2 classes of binary masks: 0 and 255"
    else:
        given = _in_order(values, classes, options)
    ignored = {IGNORED, *(() if options.ignore is None else (options.ignore,))} - set(given if table.colours else ())
    coding = {**given, **dict.fromkeys(ignored, IGNORED)}
    unknown = [value for value in values if value not in coding]
    if unknown:
        where = f"of {table.origin}" if table.origin else "found"
        problem = (
            f"values without a class: {listing(map(shown, unknown))}, beside the {len(set(given.values()))} {where}"
        )
        raise DataError("DATA.IGNORE_LABEL", problem, "set it to the value to ignore, or list the class")
    found = sorted(value for value in values if coding[value] == IGNORED)
    number = len({label for label in coding.values() if label != IGNORED})
    if not 0 < number <= MAX_CLASSES:
        raise DataError("DATA.DATA_PATH", f"{number} classes in the label maps", f"use 1 to {MAX_CLASSES}")
    return LabelCoding(
        coding
    ), f"{count(number, 'class', 'classes')}, ignored values: {listing(map(str, found)) or 'none'}"


def _in_order(values: Sequence[int], classes: int, options: CodingOptions) -> dict[int, int]:
    """Returns the class of each value that numbers one."""
    used = [value for value in values if value not in (IGNORED, options.ignore)]
    reduce = options.reduce_zero
    if reduce is None:
        one_more = bool(classes) and bool(used) and used[-1] == classes and options.ignore is None
        reduce = options.layout == "ade20k" or one_more
        if one_more and options.layout != "ade20k":
            problem = f"{classes} classes, but values up to {classes}: 0 or {classes} has no class"
            remedy = f"set it to true if 0 has none, else set DATA.IGNORE_LABEL {classes}"
            raise DataError("DATA.REDUCE_ZERO_LABEL", problem, remedy)
    number = classes or (max(used, default=-1) + (0 if reduce else 1))
    if reduce:
        return {0: IGNORED, **{label + 1: label for label in range(number)}}
    return {label: label for label in range(number)}
