"""The class of every value that the label maps of a dataset store."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath

from data.pipeline.label_maps import (
    COLOURED,
    IGNORED,
    MAX_CLASSES,
    LabelCoding,
    code_of,
    histogram,
    read_label_map,
    shown,
)
from data.sources.base import opening
from data.sources.class_tables import ADE20K_TABLE, CITYSCAPES_IDS, ClassTable
from data.sources.index import Index, Stamp, stamp, stored
from data.sources.pairs import PairSource
from utils.errors import DataError, count, listing
from utils.terminal import track


@dataclass(frozen=True)
class CodingOptions:
    """`layout` of the dataset; `reduce_zero`: whether value 0 is ignored and the others are classes + 1, None to
    decide; `ignore`: a further value without a class, None for none."""

    layout: str = "folders"
    reduce_zero: bool | None = None
    ignore: int | None = None


def count_values(source: PairSource, step: int = 1) -> Counter[int]:
    """Counts the pixels of each stored value in every `step`-th label map.

    The counts are cached until one of these maps changes. Raises: DataError.
    """
    chosen = range(0, len(source), step)

    def counted(i: int) -> Counter[int]:
        return histogram([read_label_map(source.labels(i), source.label_name(i))])

    def build() -> tuple[Index, None, list[Stamp]]:
        stamps = [stamp(source.label_name(i)) for i in chosen]
        total: Counter[int] = Counter()
        with ThreadPoolExecutor() as pool:
            for own in track(pool.map(counted, chosen), "counting label values", len(chosen), "maps"):
                total.update(own)
        values = list(total)
        return Index.build(list(map(str, values)), [0] * len(values), pixels=[total[v] for v in values]), None, stamps

    with opening(source.root):
        index, _ = stored(f"label values\0{source.root.resolve()}\0{source.fingerprint()}\0{step}", build)
    return Counter({int(index.name(i)): int(pixels) for i, pixels in enumerate(index.columns["pixels"])})


def decide(values: Sequence[int], table: ClassTable, options: CodingOptions) -> tuple[LabelCoding, str]:
    """Decides the class of every value; returns the coding and a log line. Raises: DataError.

    If coloured values occur, a table's colours are the values. Else the values are the classes; 255 is ignored, unless
    0 and 255 are the only values: a binary mask. One value more than known names is an error, except in ADE20K's
    layout, where 0 has no class.
    Args: values: ascending.
    """
    if options.layout == "cityscapes_ids":
        given = dict.fromkeys(range(-1, 256), IGNORED) | {v: label for label, v in enumerate(CITYSCAPES_IDS)}
        return LabelCoding(given), "19 classes of Cityscapes' labelIds"
    codes = {code_of(colour): label for label, colour in enumerate(table.colours)}
    unnumbered = {IGNORED, *(() if options.ignore is None else (options.ignore,))}
    coloured = any(value >= COLOURED for value in values)
    if codes and (coloured or set(values) - unnumbered <= codes.keys()):
        given, unnumbered = codes, unnumbered - codes.keys()
    elif coloured:
        problem = f"label maps with colours, such as {listing(map(shown, values[-3:]))}, but no colour table"
        raise DataError("DATA.CLASSES", problem, "list the classes in a file, one per line: name red green blue")
    elif _is_binary_mask(values, len(table.names), options):
        return LabelCoding({0: 0, 255: 1}), "2 classes of binary masks: 0 and 255"
    else:
        given = _in_order([value for value in values if value not in unnumbered], table, options)
    return _complete({**given, **dict.fromkeys(unnumbered, IGNORED)}, values, table)


def _is_binary_mask(values: Sequence[int], classes: int, options: CodingOptions) -> bool:
    return set(values) == {0, 255} and classes in (0, 2) and not options.reduce_zero and options.ignore is None


def _complete(coding: dict[int, int], values: Sequence[int], table: ClassTable) -> tuple[LabelCoding, str]:
    """Returns the coding and a log line. Raises: DataError for a value without a class, or too many classes."""
    number = len(set(coding.values()) - {IGNORED})
    unknown = [value for value in values if value not in coding]
    if unknown:
        where = f"of {table.origin}" if table.origin else "found"
        problem = f"values without a class: {listing(map(shown, unknown))}, beside the {number} {where}"
        raise DataError("DATA.IGNORE_LABEL", problem, "set it to the value to ignore, or list the class")
    if not 0 < number <= MAX_CLASSES:
        raise DataError("DATA.DATA_PATH", f"{number} classes in the label maps", f"use 1 to {MAX_CLASSES}")
    ignored = [str(value) for value in values if coding[value] == IGNORED]
    return LabelCoding(coding), f"{count(number, 'class', 'classes')}, ignored values: {listing(ignored) or 'none'}"


def _in_order(used: Sequence[int], table: ClassTable, options: CodingOptions) -> dict[int, int]:
    """Returns the class of each value that numbers one. Args: used: values found, without ignored ones."""
    classes, reduce = len(table.names), options.reduce_zero
    if reduce is None:
        reduce = _reduces_zero(used, table, options)
    zero = {0: IGNORED} if reduce else {}
    if classes:
        return {**zero, **{label + bool(reduce): label for label in range(classes)}}
    numbers = (value for value in range(max(used, default=-1) + 1) if value not in zero and value != options.ignore)
    return {**zero, **{value: label for label, value in enumerate(numbers)}}


def _reduces_zero(used: Sequence[int], table: ClassTable, options: CodingOptions) -> bool:
    """Decides whether 0 has no class. Raises: DataError if the values fit both answers."""
    classes, ade20k = len(table.names), options.layout == "ade20k"
    if not (classes and used) or (ade20k and PurePath(table.origin).name == ADE20K_TABLE):
        return ade20k
    largest = used[-1]
    if ade20k and largest < classes:
        problem = f"{classes} classes, but values up to {largest} only: whether 0 has a class is unclear"
        raise DataError("DATA.REDUCE_ZERO_LABEL", problem, "set it to true if 0 has none, as in ADE20K, else to false")
    if not ade20k and largest == classes and options.ignore is None:
        problem = f"{classes} classes, but values up to {classes}: 0 or {classes} has no class"
        remedy = f"set it to true if 0 has none, else set DATA.IGNORE_LABEL {classes}"
        raise DataError("DATA.REDUCE_ZERO_LABEL", problem, remedy)
    return ade20k and largest == classes
