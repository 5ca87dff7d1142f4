"""The classes of a segmentation dataset: names, colours, and the class of every stored value."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.pipeline.label_maps import IGNORED, Colour, LabelCoding, default_colours, shown
from data.sources.class_tables import ClassTable
from data.sources.label_coding import CodingOptions, count_values, decide
from data.sources.pairs import PairSource
from tasks.named_classes import NamedClasses, metadata_of, stored_names
from utils.checkpoints.contents import are_colours
from utils.errors import count, listing

log = logging.getLogger(__name__)
COUNTED = 500  # label maps whose pixels are counted, of a split, if the classes are known


@dataclass(frozen=True)
class SegmentationInfo(NamedClasses):
    """`colours` in label order; `coding`: the class of every stored value."""

    colours: tuple[Colour, ...] = ()
    coding: LabelCoding = field(default_factory=lambda: LabelCoding({}), repr=False)

    def as_dict(self) -> dict[str, Any]:
        values = {str(value): label for value, label in self.coding.classes.items()}
        colours = [list(colour) for colour in self.colours]
        return {"class_colours": colours, "label_values": values, **super().as_dict()}


def stored_classes(contents: Mapping[str, Any], classes: int) -> SegmentationInfo:
    """Returns the classes that a file stores, this program's or mmsegmentation's, else "class 0", ...

    Args: classes: number of outputs.
    """
    theirs = metadata_of(contents)
    colours: Any = contents.get("class_colours") or theirs.get("PALETTE") or theirs.get("palette")
    if not are_colours(colours) or len(colours) != classes:
        colours = default_colours(classes)
    triples: list[Any] = [tuple(map(int, colour)) for colour in colours]
    values = {int(value): int(label) for value, label in (contents.get("label_values") or {}).items()}
    return SegmentationInfo(
        class_names=stored_names(contents, classes), colours=tuple(triples), coding=LabelCoding(values)
    )


def read_classes(sources: Sequence[PairSource], table: ClassTable, options: CodingOptions) -> SegmentationInfo:
    """Counts the values in the label maps, logs them, and assigns a class to each value.

    Reads all maps if the classes are unknown, otherwise about 500 per split.
    Args: sources: the splits; the first identifies the data. Raises: DataError.
    """
    steps = [1 if not table.names else max(1, len(source) // COUNTED) for source in sources]
    counts: Counter[int] = Counter()
    for source, step in zip(sources, steps, strict=True):
        counts.update(count_values(source, step))
    maps = sum(len(range(0, len(source), step)) for source, step in zip(sources, steps, strict=True))
    values = [f"{shown(value)} {100 * counts[value] / counts.total():.3g}%" for value in sorted(counts)]
    log.info("label values of %s: %s", count(maps, "map"), listing(values, 40))
    coding, line = decide(sorted(counts), table, options)
    classes = 1 + max((label for label in coding.classes.values() if label != IGNORED), default=-1)
    names = table.names or tuple(f"class {label}" for label in range(classes))
    present = {coding.classes[value] for value in counts}
    absent = [name for label, name in enumerate(names) if label not in present]
    if absent:
        log.warning("%d classes have no pixels in these maps: %s", len(absent), listing(absent))
    log.info("%s: %s", line, listing(names, 20))
    colours = table.colours or tuple(default_colours(len(names)))
    return SegmentationInfo(sources[0].fingerprint(), names, colours, coding)
