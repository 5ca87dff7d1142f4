"""Unlabelled images from files, folders, glob patterns and lists."""

import hashlib
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path

from data.sources.base import Record
from data.sources.folders import is_image
from utils.errors import DataError


class FileSource:
    """Images by path, without targets."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> Record:
        """Reads a sample. Raises: DataError."""
        try:
            return Record(self._paths[i].read_bytes(), None, self.name(i))
        except OSError as e:
            raise DataError(self.name(i), f"cannot be read: {e.strerror}", "restore or remove it") from e

    def name(self, i: int) -> str:
        return str(self._paths[i])

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(map(str, self._paths)).encode("utf-8", "surrogateescape")).hexdigest()


def find_images(names: Iterable[str]) -> list[Path]:
    """Resolves names to images, without duplicates, in order.

    Args: names: files; folders, with all images below them; patterns such as "photos/*.jpg"; .txt files with one path
    per line, relative to the list. Raises: DataError for a name without images.
    """
    found: dict[Path, None] = {}
    for name in names:
        paths = _images_of(name)
        if not paths:
            remedy = "pass images, folders, patterns or a .txt file with one path per line"
            raise DataError(name, "no images found", remedy)
        found.update(dict.fromkeys(paths))
    return list(found)


def _images_of(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if is_image(each.name) and each.is_file())
    if path.suffix.lower() == ".txt" and path.is_file():
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # a path may be any bytes
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        images = [path.parent / line for line in lines]
        if images and not images[0].exists():
            raise DataError(name, f"lists an image that does not exist: {lines[0][:80]}", "list one path per line")
        return images
    if path.is_file():
        return [path]
    return sorted(Path(each) for each in glob(name, recursive=True) if Path(each).is_file())
