"""Unlabelled images from files, folders, glob patterns, lists, URLs, archives and standard input."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from data.sources.base import Record, opening, read_file, with_retries
from data.sources.copies import copy_images, is_copied
from data.sources.folders import images_below
from data.sources.names import is_left_out
from utils.errors import DataError


class FileSource:
    """Images by path, without targets. Args: names: of those that are copies."""

    def __init__(self, paths: Sequence[Path], names: Mapping[Path, str] | None = None):
        self._paths, self._names = list(paths), dict(names or {})

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> Record:
        """Reads a sample. Raises: DataError."""
        data = with_retries(lambda: read_file(self._paths[i]), lambda: self.name(i))
        return Record(data, None, self.name(i))

    def name(self, i: int) -> str:
        return self._names.get(self._paths[i]) or str(self._paths[i])

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(map(str, self._paths)).encode("utf-8", "surrogateescape")).hexdigest()


class FoundImages(NamedTuple):
    """Images by path, without duplicates, in order; the names of those that are copies; errors of names without any."""

    paths: list[Path]
    names: dict[Path, str]
    errors: list[DataError]

    def name(self, path: Path) -> str:
        return self.names.get(path) or str(path)


def find_images(names: Iterable[str], copies: Path) -> FoundImages:
    """Resolves names to images.

    Args: names: files; folders, with all images below them that training would find; patterns such as "photos/*.jpg";
    .txt files with one path per line, relative to the list; URLs; .zip and .tar archives; "-" for standard input;
    copies: an empty folder.
    Raises: DataError for a name without images, or one that cannot be read, if it is the only one.
    """
    found: dict[Path, None] = {}
    own_names: dict[Path, str] = {}
    errors: list[DataError] = []
    for number, name in enumerate(names):
        try:
            with opening(name):
                copied = copy_images(name, copies / str(number)) if is_copied(name) else {}
                paths = list(copied) or _images_of(name)
            own_names |= copied
            if not paths:
                remedy = "pass images, folders, patterns, archives, URLs or a .txt file with one path per line"
                exists = has_magic(name) or Path(name).exists()
                raise DataError(name, "no images found" if exists else "no such file or folder", remedy)
            found.update(dict.fromkeys(paths))
        except DataError as e:
            errors.append(e)
    if errors and not found:
        raise errors[0]
    return FoundImages(list(found), own_names, errors)


def _images_of(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return sorted(each for each in map(Path, images_below(path).images) if each.is_file())
    if path.suffix.lower() == ".txt" and path.is_file():
        text = read_file(path).decode("utf-8-sig", "surrogateescape")  # a path may contain any bytes
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        images = [path.parent / line for line in lines]
        if images and not images[0].exists():
            raise DataError(name, f"lists an image that does not exist: {lines[0][:80]}", "list one path per line")
        return images
    if path.is_file():
        return [path]
    found = (Path(each) for each in glob(name, recursive=True))
    return sorted(each for each in found if each.is_file() and not _left_out(each, path))


def _left_out(found: Path, pattern: Path) -> bool:
    """Returns whether a wildcard matched the name of a file or folder that training ignores."""
    return any(is_left_out(part) for part in found.parts if part not in pattern.parts)
