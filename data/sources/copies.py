"""Temporary copies of images that are not files: at a URL, on standard input, or in an archive."""

import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

from data.sources.base import check_size
from data.sources.names import is_image, is_left_out
from utils.errors import DataError, one_line

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
SILENCE = 30.0  # seconds to wait for a server


def is_copied(name: str) -> bool:
    """Returns whether `copy_images` takes a name: a URL, "-" for standard input, or an archive."""
    return name == "-" or name.startswith(("http://", "https://")) or name.lower().endswith(ARCHIVES)


def copy_images(name: str, folder: Path) -> dict[Path, str]:
    """Copies images to `folder`. Returns: their names by path. Raises: DataError."""
    folder.mkdir(parents=True)
    if name == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise DataError(name, "standard input has no image", "pipe one: cat photo.jpg | scripts/predict.py -")
        return {_copy(sys.stdin.buffer, folder / "stdin", name): name}
    if name.startswith(("http://", "https://")):
        return {_download(name, folder): name}
    try:
        members = _zip_members(name) if name.lower().endswith(".zip") else _tar_members(name)
        found = {}
        for number, (inner, member) in enumerate(members):
            with member as stream:
                target = folder / f"{number}" / PurePosixPath(inner).name
                target.parent.mkdir()
                found[_copy(stream, target, f"{name}/{inner}")] = f"{name}/{inner}"
    except (OSError, DataError):
        raise
    except Exception as e:  # zipfile and tarfile raise any type
        raise DataError(name, f"not a readable archive ({one_line(e)})", "copy it again") from e
    if not found:
        raise DataError(name, "no images found", "name an archive that contains images")
    return found


def _zip_members(name: str) -> Iterator[tuple[str, AbstractContextManager[IO[bytes]]]]:
    with zipfile.ZipFile(name) as archive:
        for member in archive.infolist():
            if not member.is_dir() and _is_wanted(member.filename):
                yield member.filename, archive.open(member)


def _tar_members(name: str) -> Iterator[tuple[str, AbstractContextManager[IO[bytes]]]]:
    with tarfile.open(name) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() and _is_wanted(member.name) else None
            if stream is not None:
                yield member.name, stream


def _is_wanted(name: str) -> bool:
    return is_image(name) and not is_left_out(name)


def _download(url: str, folder: Path) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as response:
            return _copy(response, folder / (Path(unquote(urlsplit(url).path)).name[:100] or "image"), url)
    except DataError:
        raise
    except Exception as e:  # a server can make the library raise anything
        reason = e if isinstance(e, urllib.error.HTTPError) else getattr(e, "reason", e)
        raise DataError(
            url, f"cannot be downloaded ({' '.join(str(reason).split())})", "check the URL and the network"
        ) from e


def _copy(stream: IO[bytes], target: Path, name: str) -> Path:
    """Copies at most MAX_BYTES. Raises: DataError if there are more."""
    with target.open("wb") as file:
        data = stream.read(1 << 20)
        while data:
            file.write(data)
            check_size(file.tell(), name)
            data = stream.read(1 << 20)
    return target
