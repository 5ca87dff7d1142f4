"""Copies class folders without splits into train/ and val/, or into the folds of a cross-validation."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from data.sources.base import IndexedSource
from data.sources.folders import FolderPool
from data.sources.open import has_no_splits
from data.tools.division import DivisionOptions, divide, related
from utils.errors import DataError
from utils.files import writing
from utils.terminal import track


def split_copy(root: Path, target: Path, options: DivisionOptions, folds: int = 0) -> dict[str, tuple[int, int]]:
    """Writes target/train and target/val or, with folds, target/fold_0/train and so on.

    Files are hard links where the file system supports them, else copies; the target appears when it is complete.
    Args: folds: number of folds, each of which is the validation split once; 0: one split of `options.fraction`.
    Returns: numbers of training and validation images by folder. Raises: ConfigError, DataError; ResourceError if the
    target cannot be written.
    """
    if not has_no_splits(root):
        raise DataError(str(root), "not a folder of class folders without splits", "name one")
    if target.exists():
        raise DataError(str(target), "already exists", "choose another folder, or remove it")
    if target.resolve().is_relative_to(root.resolve()):
        raise DataError(str(target), f"it would be inside the original, {root}", "choose another folder")
    source = FolderPool(root).open_whole()
    shares = [1 / folds] * folds if folds else [1 - options.fraction, options.fraction]
    groups = related(source, options.group_by, options.duplicates)
    numbers = range(len(source))
    if folds > len(source):
        raise DataError("--folds", f"{folds} folds of {len(source)} images", "use fewer")
    labels, keys = [source.labels_of(i) for i in numbers], [source.key(i) for i in numbers]
    parts = divide(labels, groups, shares, options.seed, keys).tolist()
    names = [f"fold_{fold}" for fold in range(folds)] or [""]
    counts = {}
    with writing(target, "TARGET") as temporary:
        for number, name in enumerate(names):
            held_out = [part == (number if folds else 1) for part in parts]
            _copy(source, temporary / name, held_out, name or target.name)
            counts[str(target / name)] = (held_out.count(False), held_out.count(True))
    return counts


def _copy(source: IndexedSource, folder: Path, held_out: Sequence[bool], title: str) -> None:
    for i in track(range(len(source)), title, len(source), "images"):
        place = folder / ("val" if held_out[i] else "train") / source.key(i)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(os.path.realpath(source.name(i)), place)
        except OSError:  # another file system, or one without links
            shutil.copy2(source.name(i), place)
