"""What is wrong with an image folder, found before a run: every file is decoded, classes and contents are compared."""

import hashlib
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from data.errors import DataError, some
from data.pipeline.decoding import decode, decode_jpeg, jpeg_size
from data.sources.folders import imagenet_synsets, images_below, is_image, validation_labels

IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
SHOWN = 3  # names in a finding about many files
Classes = dict[str, list[str]]  # class -> its files; of flat images the class is ""


@dataclass
class Report:
    """`facts` about a data set, and `findings`: what should not be so, a line each."""

    facts: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def check_folder(root: Path, workers: int) -> Report:
    """Look through train/ and val/. Args: workers: processes that decode. Raises: DataError if there is no folder."""
    if not root.is_dir():
        raise DataError(f"no folder {root}: name one that holds train/ and val/")
    report, parts = Report(), {}
    for part in ("train", "val"):
        if (root / part).is_dir():
            parts[part] = _list_part(root / part, report)
        else:
            report.findings.append(f"no folder {part}/: {root}")
    if len(parts) == 2:
        _compare_classes(parts["train"], parts["val"], report)
    _check_imagenet(parts, report)
    _check_contents(parts, workers, report)
    return report


def _list_part(folder: Path, report: Report) -> Classes:
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    classes: Classes = {name: images_below(folder / name)[0] for name in sorted(names)}
    loose = [entry.name for entry in os.scandir(folder) if is_image(entry.name) and not entry.is_dir()]
    flat = [str(folder / name) for name in sorted(loose)]
    empty = [name for name, files in classes.items() if not files]
    report.findings += [f"no images for class {name}: {folder / name}" for name in empty]
    if flat and classes:
        report.findings.append(f"images beside the class folders, not in one, {len(flat)}: {some(flat, SHOWN)}")
    elif flat:
        strange = [file for file in flat if os.path.basename(file) not in validation_labels()]
        if strange or folder.name != "val":
            report.findings.append(f"no class folders, and images that are not ImageNet's: {some(strange, SHOWN)}")
        classes = {"": flat}
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
            report.findings.append(f"classes whose names hardly differ: {folder}: {', '.join(map(repr, group))}")
    if len(names) > 1 and all(name.isdigit() for name in names) and sorted(names, key=int) != sorted(names):
        report.findings.append(
            f"numbers as names that sort as text, so that label 1 is not class 1: {folder}: write them with as many"
            f" digits each ({sorted(names, key=int)[1].zfill(len(max(names, key=len)))})"
        )


def _check_strays(folder: Path, report: Report) -> None:
    """Files that are passed over in reading, and links that lead nowhere."""
    strays, broken = [], []
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(parent, name) for name in names if not name.startswith(".")):
            if not os.path.exists(path):
                broken.append(path)
            elif not is_image(path):
                strays.append(path)
    if strays:
        report.findings.append(f"no images by their ending, {len(strays)}: {some(sorted(strays), SHOWN)}")
    if broken:
        report.findings.append(f"links lead nowhere, {len(broken)}: {some(sorted(broken), SHOWN)}")


def _compare_classes(train: Classes, val: Classes, report: Report) -> None:
    if "" in val:
        strange = sorted(set(train) - set(imagenet_synsets()))
        if strange:
            report.findings.append(f"val/ is ImageNet's, flat, but train/ has other classes: {some(strange, SHOWN)}")
        return
    for one, other, where in ((train, val, "train, not in val"), (val, train, "val, not in train")):
        missing = sorted(set(one) - set(other) - {""})
        if missing:
            report.findings.append(f"classes that are in {where}, {len(missing)}: {some(missing, SHOWN)}")


def _check_imagenet(parts: dict[str, Classes], report: Report) -> None:
    """Counts and the order of labels, where the classes are ImageNet-1K's."""
    synsets = imagenet_synsets()
    if "train" not in parts or set(parts["train"]) != set(synsets):
        return
    report.facts.append("the classes are ImageNet-1K's 1,000; labels are in the order of the synsets")
    for part, classes in parts.items():
        count = sum(map(len, classes.values()))
        if count != IMAGENET_COUNTS[part]:
            report.findings.append(f"ImageNet-1K has {IMAGENET_COUNTS[part]:,} images in {part}, here are {count:,}")


def _check_contents(parts: dict[str, Classes], workers: int, report: Report) -> None:
    owner = {file: (part, name) for part, classes in parts.items() for name, files in classes.items() for file in files}
    first: dict[bytes, str] = {}
    again = 0
    for file, digest, error in _examined(sorted(owner), workers):
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
    report.facts.append(f"{len(first):,} different files could be decoded, {again:,} more repeat one of their class")


def _examined(files: Sequence[str], workers: int) -> Iterator[tuple[str, bytes, str]]:
    with ProcessPoolExecutor(max(1, workers), multiprocessing.get_context("forkserver")) as pool:
        results: Iterable[tuple[str, bytes, str]] = pool.map(_examine, files, chunksize=16)
        yield from tqdm(results, total=len(files), unit=" files", disable=None)


def _examine(file: str) -> tuple[str, bytes, str]:
    """(file, digest of its bytes, what is wrong with it), decoded as training does."""
    if os.path.exists(file) and not os.path.isfile(file):
        return file, b"", f"not a file: {file}"
    try:
        data = Path(file).read_bytes()
        size = jpeg_size(data)
        if size is None:
            decode(data, file)
        else:
            decode_jpeg(data, file, *size)
    except OSError as e:
        return file, b"", f"cannot read an image ({e.strerror}): {file}"
    except DataError as e:
        return file, b"", str(e)
    return file, hashlib.blake2b(data, digest_size=16).digest(), ""
