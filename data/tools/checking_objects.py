"""Checks a dataset of annotated objects for problems: decodes every image, compares sizes, classes and contents."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.pipeline.decoding import decode, decode_bands, orientation
from data.sources.instances import AnnotatedImage
from data.sources.object_store import ObjectSource, ObjectStore
from data.tools.checking import LISTED, SHOWN, WARN_AT, Report, describe_images, examine_all, find_copies
from utils.errors import DataError, count, listing
from utils.terminal import table_lines

SIDES = (32, 96)  # between small, medium and large objects, as in COCO's figures: roots of areas in pixels


class Examined(NamedTuple):
    """What was found in an image: a `problem` or "", the digest of the file, (height, width), whether it is turned."""

    name: str
    problem: str = ""
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    turned: bool = False


def has_objects(root: Path) -> bool:
    """Returns whether a folder looks like images with annotated objects."""
    try:
        return bool(ObjectStore(root).layout)
    except DataError:
        return False


def check_objects(root: Path, workers: int, channels: int = 3) -> Report:
    """Checks the splits of images with annotated objects.

    Args: workers: number of decoding processes; channels: number of channels of the model (MODEL.SWIN.IN_CHANS).
    Raises: DataError.
    """
    store, report = ObjectStore(root), Report()
    report.facts.append(f"layout {store.layout}: {root}")
    sources: dict[str, ObjectSource] = {}
    for split in ("train", "val"):
        if not store.has(split):
            report.findings.append(f"no {split} images: {root}")
            continue
        try:
            names = sources["train"].class_names if "train" in sources else None
            sources[split] = store.open(split, names)
        except DataError as e:
            report.findings.append(f"{e.problem}: {e.subject}")
    found = {split: examine_all(_Examine(source, channels), len(source), workers) for split, source in sources.items()}
    for split, source in sources.items():
        _describe(split, source, found[split], report)
    _describe_classes(sources, report)
    digests = {split: [(each.name, each.digest) for each in own if each.digest] for split, own in found.items()}
    find_copies(digests, report)
    return report


class _Examine:
    """Decodes an image as training does, in a worker."""

    def __init__(self, source: ObjectSource, channels: int):
        self._source, self._channels = source, channels

    def __call__(self, i: int) -> Examined:
        name = self._source.name(i)
        try:
            data, target, _ = self._source[i]
            if self._channels == 3:
                size = decode(data, name, upright=True).size[::-1]
            else:
                size = decode_bands(data, name, self._channels, upright=True).shape[:2]
        except DataError as e:
            return Examined(name, f"{e.problem}: {e.subject}")
        turn = orientation(data)
        if target.size != size:
            sizes = f"{target.size[1]}x{target.size[0]} instead of {size[1]}x{size[0]}"
            if turn > 4 and target.size == size[::-1]:
                sizes += ", as they ignore the EXIF orientation (DATA.EXIF ignore)"
            return Examined(name, f"annotations for another size of image, {sizes}: {name}")
        return Examined(name, "", hashlib.blake2b(data, digest_size=16).digest(), size, turn != 1)


def _describe(split: str, source: ObjectSource, found: Sequence[Examined], report: Report) -> None:
    report.findings += [each.problem for each in found if each.problem]
    images = [source.image(i) for i in range(len(source))]
    objects = [one for image in images for one in image.instances]
    empty = [image.file for image in images if not image.instances]
    report.facts.append(f"{split}: {count(len(images), 'image')} with {count(len(objects), 'object')}")
    if empty:
        report.facts.append(f"{split}: {count(len(empty), 'image')} without objects: {listing(empty, SHOWN)}")
    crowds, unshaped = sum(one.crowd for one in objects), source.unshaped()
    if 0 < unshaped < sum(source.counts):
        shaped = sum(source.counts) - unshaped
        report.findings.append(f"{split}: {count(unshaped, 'object')} without a mask, {shaped:,} with one")
    sizes = ", ".join(f"{number:,} {name}" for name, number in _sizes(images).items())
    report.facts.append(f"{split} objects: {sizes}" + (f"; {count(crowds, 'crowd')}" if crowds else ""))
    describe_images([(e.name, e.size, e.turned) for e in found if not e.problem], report, f"{split} sizes")
    report.findings += [f"{split}: {line}" for line in source.omitted]


def _sizes(images: Sequence[AnnotatedImage]) -> Counter[str]:
    """Counts small, medium and large objects by the areas of their boxes."""
    counts = Counter({"small": 0, "medium": 0, "large": 0})
    for image in images:
        for (x1, y1, x2, y2), *_ in image.instances:
            side = ((x2 - x1) * (y2 - y1)) ** 0.5
            counts["small" if side < SIDES[0] else "medium" if side < SIDES[1] else "large"] += 1
    return counts


def _describe_classes(sources: Mapping[str, ObjectSource], report: Report) -> None:
    """Adds a table of the classes and their objects; classes without any in a split are findings."""
    if not sources:
        return
    names = next(iter(sources.values())).class_names
    counts = {split: source.counts for split, source in sources.items()}
    rows = [[name, *(own[label] for own in counts.values())] for label, name in enumerate(names)]
    report.facts += table_lines(["class", *counts], rows[:LISTED])
    if len(rows) > LISTED:
        report.facts.append(f"... {len(rows) - LISTED} more classes")
    for split, own in counts.items():
        absent = [name for label, name in enumerate(names) if not own[label]]
        if absent:
            report.findings.append(
                f"{split}: no objects of {count(len(absent), 'class', 'classes')}: {listing(absent)}"
            )
    present = sorted((number, names[label]) for label, number in enumerate(counts.get("train", ())) if number)
    if present and present[-1][0] >= WARN_AT * present[0][0]:
        (least, smallest), (most, largest) = present[0], present[-1]
        report.facts.append(f"imbalance: {largest} has {most:,} training objects, {smallest} has {least:,}")
