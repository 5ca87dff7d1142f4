"""Unlabelled images: any folder, regardless of its structure."""

from collections.abc import Sequence
from pathlib import Path

from data.sources.base import IndexedSource
from data.sources.folders import FolderStorage, images_below
from data.sources.index import Index, Stamp, stored
from data.sources.names import warn_of_ignored
from utils.errors import DataError


class UnlabelledStore:
    """All images under a folder, at any depth, without classes: every label is 0.

    The splits are train/ and val/ if the folder contains train/; otherwise all images are used for training.
    """

    def __init__(self, root: Path):
        self._root = root
        self._divided = (root / "train").is_dir()

    def has(self, split: str) -> bool:
        return self._folder(split).is_dir() if self._divided else split == "train"

    def class_names(self, split: str) -> list[str]:
        """Returns an empty list."""
        return []

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Opens a split. Raises: DataError for a folder that does not exist, or has no images."""
        folder = self._folder(split)
        if not folder.is_dir():
            raise DataError("--data-path", f"no such folder: {folder}", "choose a folder of images")
        index, _ = stored(f"unlabelled\0{folder.resolve()}", lambda: _walk(folder))
        return IndexedSource(index, (), FolderStorage(folder))

    def _folder(self, split: str) -> Path:
        return self._root / split if self._divided else self._root


def _walk(folder: Path) -> tuple[Index, None, list[Stamp]]:
    found = images_below(folder)
    if not found.images:
        raise DataError("--data-path", f"no images in {folder}", "choose a folder of images")
    warn_of_ignored(found.ignored)
    files = sorted(str(Path(file).relative_to(folder)) for file in found.images)
    return Index.build(files, [0] * len(files)), None, found.stamps
