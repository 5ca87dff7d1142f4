"""Images inside archives: zip files, with or without a map of labels, and tar shards.

An index of where every image lies is made once, by the standard library; images are then read at their place with one
system call that has no file position, so any number of processes can share an archive.
"""

import logging
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError, some
from data.sources.base import IndexedSource, check_classes
from data.sources.folders import is_image
from data.sources.index import Index, Stamp, stamp, stored
from data.sources.lists import read_list, safe_path

log = logging.getLogger(__name__)

LOCAL_HEADER = 30  # bytes before the name in a zip member; the lengths of name and extra field are its last four
ENCRYPTED = 0x1
BLOCK = 1 << 24


class ZipStore:
    """train.zip and val.zip; with train_map.txt and val_map.txt the labels are those, else the folders inside."""

    def __init__(self, root: Path):
        self._root = root

    def has(self, part: str) -> bool:
        return self._archive(part).is_file()

    def class_names(self, part: str) -> list[str]:
        return list(self.open(part).class_names)

    def open(self, part: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Raises: DataError for a missing or damaged archive, a member that the map names and the archive lacks."""
        archive, labels = self._archive(part), self._root / f"{part}_map.txt"
        if not archive.is_file():
            raise DataError(f"no archive {archive.name}: {self._root}: DATA.ZIP_MODE needs train.zip and val.zip")
        mapped = labels if labels.is_file() else None
        key = f"zip\0{archive.resolve()}\0{mapped}\0{classes}\0{chr(0).join(class_names or [])}"
        index, names = stored(key, lambda: _index_zip(archive, part, mapped, class_names, classes))
        return IndexedSource(index, names, ZipStorage(archive))

    def _archive(self, part: str) -> Path:
        return self._root / f"{part}.zip"


class ZipStorage:
    """Members of a zip archive, by the offsets in the index; their checksums are verified."""

    def __init__(self, archive: Path):
        self._archive, self._file = archive, SharedFile(archive)

    def read(self, index: Index, number: int) -> bytes:
        start, size, method, checksum = (int(index.columns[c][number]) for c in ("start", "size", "method", "crc"))
        header = self._file.read(start, LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise self._damaged(index, number, "no member begins there")
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = self._file.read(start + LOCAL_HEADER + skip, size)
        try:
            data = data if method == zipfile.ZIP_STORED else zlib.decompress(data, wbits=-zlib.MAX_WBITS)
        except zlib.error as e:
            raise self._damaged(index, number, str(e)) from e
        if zlib.crc32(data) != checksum:
            raise self._damaged(index, number, "its checksum is wrong")
        return data

    def where(self, name: str) -> str:
        return f"{self._archive}@/{name}"

    def _damaged(self, index: Index, number: int, reason: str) -> DataError:
        return DataError(f"damaged in the archive ({reason}): {self.where(index.name(number))}: copy the archive again")


class TarStore:
    """train.tar and val.tar, or shards train-000.tar, ...: class folders inside, or WebDataset's pairs x.jpg, x.cls."""

    def __init__(self, root: Path):
        self._root = root

    def has(self, part: str) -> bool:
        return bool(self._shards(part))

    def class_names(self, part: str) -> list[str]:
        return list(self.open(part).class_names)

    def open(self, part: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Raises: DataError for missing or damaged shards, or an image without a label."""
        shards = self._shards(part)
        if not shards:
            raise DataError(f"no {part}.tar and no {part}*.tar: {self._root}: DATA.DATASET tar needs them")
        key = f"tar\0{self._root.resolve()}\0{part}\0{classes}\0{chr(0).join(class_names or [])}"
        index, names = stored(key, lambda: _index_tar(shards, part, class_names, classes))
        return IndexedSource(index, names, TarStorage(shards))

    def _shards(self, part: str) -> list[Path]:
        return sorted(self._root.glob(f"{part}*.tar"))


class TarStorage:
    """Members of tar shards, by the offsets in the index."""

    def __init__(self, shards: Sequence[Path]):
        self._folder, self._files = shards[0].parent, [SharedFile(shard) for shard in shards]

    def read(self, index: Index, number: int) -> bytes:
        shard, start, size = (int(index.columns[c][number]) for c in ("shard", "start", "size"))
        data = self._files[shard].read(start, size)
        if len(data) < size:
            raise DataError(f"the archive ends within an image: {self.where(index.name(number))}: copy it again")
        return data

    def where(self, name: str) -> str:
        return f"{self._folder}@/{name}"


class SharedFile:
    """Reads at given places; opened by each process for itself, when it first reads."""

    def __init__(self, path: Path):
        self._path, self._owner, self._descriptor = path, 0, -1

    def read(self, start: int, size: int) -> bytes:
        if self._owner != os.getpid():
            self._descriptor, self._owner = os.open(self._path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)), os.getpid()
        return os.pread(self._descriptor, size, start)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return SharedFile, (self._path,)


def warm(archive: Path, share: int, shares: int) -> None:
    """Read part `share` of `shares` of a file once, so that the system keeps it in memory for all processes."""
    begin, end = (archive.stat().st_size * part // shares for part in (share, share + 1))
    with open(archive, "rb", buffering=0) as file:
        file.seek(begin)
        while begin < end and (data := file.read(min(BLOCK, end - begin))):
            begin += len(data)


def _index_zip(
    archive: Path, part: str, mapped: Path | None, class_names: Sequence[str] | None, classes: int
) -> tuple[Index, list[str], list[Stamp]]:
    members = _zip_members(archive, part)
    if mapped is None:
        names, labels, class_list = _label_by_folder(sorted(members), class_names, archive)
        stamps = [stamp(archive)]
    else:
        listed = read_list(mapped, classes, class_names)
        names, labels, class_list = listed.names, listed.labels, listed.class_names
        missing = [name for name in names if name not in members]
        if missing:
            raise DataError(f"{len(missing)} images of {mapped} are not in the archive: {archive}@/{missing[0]}")
        stamps = [stamp(archive), stamp(mapped)]
    chosen = [members[name] for name in names]
    secret = next((m.filename for m in chosen if m.flag_bits & ENCRYPTED), None)
    if secret is not None:
        raise DataError(f"an encrypted image: {archive}@/{secret}: pack the images without a password")
    odd = next((m for m in chosen if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), None)
    if odd is not None:
        raise DataError(f"a compression that is not read here ({odd.compress_type}): {archive}@/{odd.filename}")
    index = Index.build(
        names,
        labels,
        start=[m.header_offset for m in chosen],
        size=[m.compress_size for m in chosen],
        method=[m.compress_type for m in chosen],
        crc=[m.CRC for m in chosen],
    )
    return index, class_list, stamps


def _zip_members(archive: Path, part: str) -> dict[str, zipfile.ZipInfo]:
    """Images of an archive by their path below the part's own folder, if all lie in one."""
    try:
        with zipfile.ZipFile(archive) as file:
            infos = [info for info in file.infolist() if is_image(info.filename)]
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as e:
        raise DataError(f"not a readable zip archive ({e}): {archive}: copy it again") from e
    names = _below_part([safe_path(info.filename, f"{archive}@/{info.filename}") for info in infos], part)
    return dict(zip(names, infos, strict=True))


def _below_part(names: list[str], part: str) -> list[str]:
    inside = all(name.startswith(f"{part}/") for name in names)
    return [name.removeprefix(f"{part}/") for name in names] if inside else names


def _label_by_folder(
    names: list[str], class_names: Sequence[str] | None, where: Path
) -> tuple[list[str], list[int], list[str]]:
    flat = [name for name in names if "/" not in name]
    if flat or not names:
        raise DataError(
            f"images without a class folder: {where}: {some(flat) or 'none at all'}: pack a folder for each class,"
            " or add a map of labels"
        )
    own = [name.partition("/")[0] for name in names]
    found = sorted(set(own))
    chosen = list(found if class_names is None else class_names)
    check_classes(found, chosen, where)
    labels = {name: label for label, name in enumerate(chosen)}
    return names, [labels[name] for name in own], chosen


def _index_tar(
    shards: Sequence[Path], part: str, class_names: Sequence[str] | None, classes: int
) -> tuple[Index, list[str], list[Stamp]]:
    images: list[tuple[str, int, int, int]] = []  # name, shard, start, size
    labels: dict[tuple[int, str], int] = {}  # WebDataset: (shard, key) -> label
    for shard, path in enumerate(shards):
        try:
            with tarfile.open(path, "r:") as file:
                for member in file:
                    name = posixpath.normpath(member.name)
                    if member.isfile() and name.endswith(".cls"):
                        text = file.extractfile(member)
                        labels[shard, name.removesuffix(".cls")] = int(text.read()) if text else -1
                    elif member.isfile() and is_image(name):
                        images.append((safe_path(name, f"{path}@/{name}"), shard, member.offset_data, member.size))
        except (OSError, tarfile.TarError, ValueError) as e:
            raise DataError(f"not a readable tar archive ({e}): {path}: copy it again, uncompressed") from e
    names = [name for name, *_ in images]
    if labels:
        numbers = [labels.get((shard, posixpath.splitext(name)[0]), -1) for name, shard, _, _ in images]
        chosen = _numbered(numbers, names, classes, class_names, shards[0].parent)
        names = [f"{shards[shard].name}/{name}" for name, shard, _, _ in images]  # keys may repeat
    else:
        names, numbers, chosen = _label_by_folder(_below_part(names, part), class_names, shards[0].parent)
    index = Index.build(
        names,
        numbers,
        shard=[shard for _, shard, _, _ in images],
        start=[start for _, _, start, _ in images],
        size=[size for _, _, _, size in images],
    )
    return index, chosen, [stamp(shards[0].parent), *map(stamp, shards)]


def _numbered(
    labels: Sequence[int], names: Sequence[str], classes: int, class_names: Sequence[str] | None, where: Path
) -> list[str]:
    """Class names for labels that are given as numbers."""
    chosen = list(class_names or [str(i) for i in range(classes or max(labels, default=0) + 1)])
    bad = next((i for i, label in enumerate(labels) if not 0 <= label < len(chosen)), None)
    if bad is not None:
        raise DataError(f"no label from 0 to {len(chosen) - 1}: {where}@/{names[bad]}: its .cls must hold one")
    return chosen
