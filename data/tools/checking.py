"""Checks an image folder for problems: decodes every file, compares classes and contents."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from data.pipeline.decoding import decode, decode_bands, decode_jpeg, jpeg_size, orientation
from data.pipeline.fork_server import worker_pool
from data.sources.base import read_file
from data.sources.folders import imagenet_synsets, images_below, list_split, validation_labels
from data.sources.names import is_image, is_left_out, nested_classes
from data.sources.open import has_no_splits
from data.tools.duplicates import Thumbnail, similar, thumbnail
from utils.errors import DataError, count, listing
from utils.terminal import table_lines, track

IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
WHOLE = ""  # the split of a dataset without splits
LISTED = 30  # classes in the table
WARN_AT = 10  # times the images of the smallest class
SHOWN = 3  # names listed in a finding about many files
T = TypeVar("T")
Classes = dict[str, list[str]]  # class -> its files; flat images have the class ""


@dataclass
class Report:
    """`facts` about a dataset, and `findings`: problems, one line each."""

    facts: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def check_folder(root: Path, workers: int, channels: int = 3) -> Report:
    """Checks train/ and val/, or class folders without splits.

    Args: workers: number of decoding processes; channels: number of channels of the model (MODEL.SWIN.IN_CHANS).
    Raises: DataError if `root` is not a folder, or a folder below it cannot be listed.
    """
    if not root.is_dir():
        raise DataError(str(root), "no such folder", "choose one that contains train/ and val/, or class folders")
    report, splits = Report(), {}
    if has_no_splits(root):
        splits[WHOLE] = _list_split(root, report)
        report.facts.append("no train/ and val/: a training run holds out a part of every class (DATA.SPLIT)")
    for split in () if splits else ("train", "val"):
        if (root / split).is_dir():
            splits[split] = _list_split(root / split, report)
        else:
            report.findings.append(f"no folder {split}/: {root}")
    if len(splits) == 2:
        _compare_classes(splits["train"], splits["val"], report)
    _describe_classes(splits, report)
    _check_imagenet(splits, report)
    _check_contents(splits, workers, channels, report)
    return report


def _describe_classes(splits: dict[str, Classes], report: Report) -> None:
    """Adds a table of the classes, and what is unusual about their sizes."""
    first = next(iter(splits.values()), {})
    names = sorted({name for classes in splits.values() for name in classes} - {""})
    if not names:
        return
    counts = {name: [len(classes.get(name, ())) for classes in splits.values()] for name in names}
    total = max(1, sum(own[0] for own in counts.values()))
    rows = [[name, *own, f"{100 * own[0] / total:.1f}%"] for name, own in counts.items()]
    if len(rows) > LISTED:
        rows.sort(key=lambda row: (row[1], row[0]))
        rows = [*rows[: LISTED // 2], ["...", *[""] * len(splits), ""], *rows[-(LISTED // 2) :]]
    report.facts += table_lines(["class", *(split or "images" for split in splits), "share"], rows)
    nested = any("subfolders that may be the classes" in finding for finding in report.findings)
    if len(names) == 1 and len(first) == 1 and not nested:
        report.findings.append(f"one class only, {names[0]}: there is nothing to distinguish")
    sizes = sorted((own[0], name) for name, own in counts.items() if own[0])
    if len(sizes) > 1 and sizes[-1][0] >= WARN_AT * sizes[0][0]:
        (least, smallest), (most, largest) = sizes[0], sizes[-1]
        report.facts.append(f"imbalanced: {largest} has {most:,} images, {smallest} has {least:,}; see DATA.SAMPLER")


def _list_split(folder: Path, report: Report) -> Classes:
    names, loose, _ = list_split(folder)
    classes: Classes = {name: images_below(folder / name).images for name in names}
    flat = [str(folder / name) for name in loose]
    empty = [name for name, files in classes.items() if not files]
    report.findings += [f"no images for class {name}: {folder / name}" for name in empty]
    if flat and classes:
        report.findings.append(f"images outside the class folders, {len(flat)}: {listing(flat, SHOWN)}")
    elif flat:
        strange = [file for file in flat if os.path.basename(file) not in validation_labels()]
        if strange or folder.name != "val":
            report.findings.append(f"no class folders, and images that are not ImageNet's: {listing(strange, SHOWN)}")
        classes = {"": flat}
    inner = nested_classes(os.path.relpath(file, folder) for files in classes.values() for file in files)
    if inner:
        problem = "one class, with subfolders that may be the classes"
        report.findings.append(f"{problem}: {folder / names[0]}: {listing(inner)}")
    _check_names(folder, list(classes), report)
    _check_strays(folder, report)
    counts = [len(files) for files in classes.values()] or [0]
    spread = f"{min(counts):,} to {max(counts):,} in a class"
    report.facts.append(
        f"{folder.name}: {count(sum(counts), 'image')}, {count(len(names), 'class', 'classes')}, {spread}"
    )
    return {name: files for name, files in classes.items() if files}


def _check_names(folder: Path, names: Sequence[str], report: Report) -> None:
    alike = defaultdict(list)
    for name in names:
        alike[name.strip().casefold()].append(name)
    for group in alike.values():
        if len(group) > 1:
            report.findings.append(f"nearly identical class names: {folder}: {', '.join(map(repr, group))}")
    if len(names) > 1 and all(name.isdigit() for name in names) and sorted(names, key=int) != sorted(names):
        report.findings.append(
            f"numeric class names sort as text, so that label 1 is not class 1: {folder}: pad them with zeros"
            f" ({sorted(names, key=int)[1].zfill(len(max(names, key=len)))})"
        )


def _check_strays(folder: Path, report: Report) -> None:
    """Reports ignored files and broken links."""
    strays, broken = [], []
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not is_left_out(name)]
        for path in (os.path.join(parent, name) for name in names if not is_left_out(name)):
            if not os.path.exists(path):
                broken.append(path)
            elif not is_image(path):
                strays.append(path)
    if strays:
        report.findings.append(f"files without an image extension, {len(strays)}: {listing(sorted(strays), SHOWN)}")
    if broken:
        report.findings.append(f"broken links, {len(broken)}: {listing(sorted(broken), SHOWN)}")


def _compare_classes(train: Classes, val: Classes, report: Report) -> None:
    if "" in val:
        strange = sorted(set(train) - set(imagenet_synsets()))
        if strange:
            report.findings.append(f"val/ is ImageNet's, flat, but train/ has other classes: {listing(strange, SHOWN)}")
        return
    for one, other, where in ((train, val, "train but not in val"), (val, train, "val but not in train")):
        missing = sorted(set(one) - set(other) - {""})
        if missing:
            report.findings.append(f"classes in {where}, {len(missing)}: {listing(missing, SHOWN)}")


def _check_imagenet(splits: dict[str, Classes], report: Report) -> None:
    """Compares the counts if the classes are ImageNet-1K's."""
    synsets = imagenet_synsets()
    if "train" not in splits or set(splits["train"]) != set(synsets):
        return
    report.facts.append("the classes are ImageNet-1K's 1,000; labels are in synset order")
    for split, classes in splits.items():
        count = sum(map(len, classes.values()))
        if count != IMAGENET_COUNTS[split]:
            report.findings.append(f"ImageNet-1K has {IMAGENET_COUNTS[split]:,} images in {split}, this has {count:,}")


class Examined(NamedTuple):
    """What was found in a file: the digest of its bytes, a `problem` or "", (height, width), whether EXIF orientation
    turns it, a thumbnail."""

    file: str
    digest: bytes = b""
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    thumbnail: Thumbnail | None = None


def _check_contents(splits: dict[str, Classes], workers: int, channels: int, report: Report) -> None:
    owner = {
        file: (split, name) for split, classes in splits.items() for name, files in classes.items() for file in files
    }
    with worker_pool(workers) as pool:
        results = pool.map(partial(_examine, channels), sorted(owner), chunksize=16)
        found = list(track(results, "checking", len(owner), "files"))
    report.findings += [each.problem for each in found if each.problem]
    good = [each for each in found if not each.problem]
    describe_images([(each.file, each.size, each.turned) for each in good], report)
    copies: dict[bytes, list[str]] = defaultdict(list)
    for each in good:
        copies[each.digest].append(each.file)
    again = 0
    for first, *others in copies.values():
        for file in others:
            where = _apart(owner[first], owner[file])
            again += not where
            report.findings += [f"the same image in {where}: {first}, {file}"] if where else []
    report.facts.append(f"{len(copies):,} distinct images, {count(again, 'duplicate')} within a class")
    distinct = {each.digest: each for each in reversed(good)}
    unique = sorted(distinct.values())
    for group in similar([each.thumbnail for each in unique]):
        first, *others = (unique[i].file for i in group)
        parts = [(file, where) for file in others if (where := _apart(owner[first], owner[file]))]
        report.findings += [f"nearly the same image in {where}: {first}, {file}" for file, where in parts]


def _apart(one: tuple[str, str], other: tuple[str, str]) -> str:
    """Returns how the places of two images, (split, class), differ; "" if they are the same."""
    if one[0] != other[0]:
        return "train and val"
    return "two classes" if one[1] != other[1] else ""


def examine_all(examine: Callable[[int], T], count: int, workers: int) -> list[T]:
    """Examines the samples 0 to `count` in processes, with a progress bar. Args: examine: must pickle."""
    with worker_pool(workers) as pool:
        return list(track(pool.map(examine, range(count), chunksize=16), "checking", count, "images"))


def describe_images(found: Sequence[tuple[str, tuple[int, int], bool]], report: Report, title: str = "sizes") -> None:
    """Adds the range of sizes, and the number of turned images.

    Args: found: name, (height, width), whether EXIF orientation turns it; title: title of the line about sizes.
    """
    sizes = sorted((min(size), *size, name) for name, size, _ in found)
    if sizes:
        (_, h, w, small), (_, most_h, most_w, large) = sizes[0], sizes[-1]
        report.facts.append(f"{title}: from {w}x{h} ({small}) to {most_w}x{most_h} ({large}), width x height")
    turned = [name for name, _, is_turned in found if is_turned]
    if turned:
        what = count(len(turned), "image is", "images are")
        report.facts.append(f"{what} turned by EXIF orientation (DATA.EXIF): {listing(turned, SHOWN)}")


def find_copies(found: Mapping[str, Sequence[tuple[str, bytes]]], report: Report) -> None:
    """Reports images that are in both splits, and counts those that are twice in one.

    Args: found: name and digest of each image, by split.
    """
    copies: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for split, images in found.items():
        for name, digest in images:
            copies[digest].append((split, name))
    again = sum(len(own) - 1 for own in copies.values())
    report.facts.append(f"{len(copies):,} distinct images, {count(again, 'duplicate')}")
    for (split, first), *others in copies.values():
        for other, name in others:
            if other != split:
                report.findings.append(f"the same image in train and val: {first}, {name}")


def _examine(channels: int, file: str) -> Examined:
    """Decodes a file as in training."""
    if os.path.exists(file) and not os.path.isfile(file):
        return Examined(file, problem=f"not a file: {file}")
    try:
        data = read_file(file)
        size, small = jpeg_size(data), None
        if channels not in (1, 3):
            size = decode_bands(data, file, channels).shape[:2]
        elif size is None:
            size = decode(data, file).size[::-1]
        else:
            decode_jpeg(data, file, *size)
        if channels in (1, 3):
            small = thumbnail(data, file)
    except OSError as e:
        return Examined(file, problem=f"cannot be read ({e.strerror}): {file}")
    except DataError as e:
        return Examined(file, problem=f"{e.problem}: {file}")
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Examined(file, digest, "", size, orientation(data) != 1, small)
