"""Checks an image folder for problems: decodes every file, compares classes and contents."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data.pipeline.decoding import decode, decode_bands, decode_jpeg, jpeg_size
from data.pipeline.fork_server import worker_pool
from data.sources.base import read_file
from data.sources.folders import imagenet_synsets, images_below, list_split, validation_labels
from data.sources.names import is_image, is_left_out, nested_classes
from utils.errors import DataError, count, listing
from utils.terminal import track

IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
SHOWN = 3  # names listed in a finding about many files
Classes = dict[str, list[str]]  # class -> its files; flat images have the class ""


@dataclass
class Report:
    """`facts` about a dataset, and `findings`: problems, one line each."""

    facts: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def check_folder(root: Path, workers: int, channels: int = 3) -> Report:
    """Checks train/ and val/. Args: workers: decoding processes; channels: the model's (MODEL.SWIN.IN_CHANS).

    Raises: DataError if `root` is not a folder, or a folder below it cannot be listed.
    """
    if not root.is_dir():
        raise DataError(str(root), "no such folder", "choose one that contains train/ and val/")
    report, splits = Report(), {}
    for split in ("train", "val"):
        if (root / split).is_dir():
            splits[split] = _list_split(root / split, report)
        else:
            report.findings.append(f"no folder {split}/: {root}")
    if len(splits) == 2:
        _compare_classes(splits["train"], splits["val"], report)
    _check_imagenet(splits, report)
    _check_contents(splits, workers, channels, report)
    return report


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
    report.facts.append(f"{folder.name}: {sum(counts):,} images, {len(names):,} classes, {spread}")
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


def _check_contents(splits: dict[str, Classes], workers: int, channels: int, report: Report) -> None:
    owner = {
        file: (split, name) for split, classes in splits.items() for name, files in classes.items() for file in files
    }
    first: dict[bytes, str] = {}
    again = 0
    with worker_pool(workers) as pool:
        results = pool.map(partial(_examine, channels), sorted(owner), chunksize=16)
        for file, digest, error in track(results, "checking", len(owner), "files"):
            if error:
                report.findings.append(error)
            elif digest not in first:
                first[digest] = file
            elif owner[file][0] != owner[first[digest]][0]:
                report.findings.append(f"the same image in train and val: {first[digest]}, {file}")
            elif owner[file][1] != owner[first[digest]][1]:
                report.findings.append(f"the same image in two classes: {first[digest]}, {file}")
            else:
                again += 1
    report.facts.append(f"{len(first):,} distinct images, {count(again, 'duplicate')} within a class")


def _examine(channels: int, file: str) -> tuple[str, bytes, str]:
    """Decodes a file as in training; returns (file, digest of its bytes, problem or "")."""
    if os.path.exists(file) and not os.path.isfile(file):
        return file, b"", f"not a file: {file}"
    try:
        data = read_file(file)
        size = jpeg_size(data)
        if channels not in (1, 3):
            decode_bands(data, file, channels)
        elif size is None:
            decode(data, file)
        else:
            decode_jpeg(data, file, *size)
    except OSError as e:
        return file, b"", f"cannot be read ({e.strerror}): {file}"
    except DataError as e:
        return file, b"", f"{e.problem}: {file}"
    return file, hashlib.blake2b(data, digest_size=16).digest(), ""
