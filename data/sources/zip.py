"""Images in zip archives, with or without a label map."""

import posixpath
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from data.sources.archive import SharedFiles, below_split, label_by_folder
from data.sources.base import IndexedSource, Store, check_size
from data.sources.index import Index, Stamp, stamp, stored
from data.sources.lists import read_list, safe_path
from data.sources.names import is_image, is_left_out, warn_of_ignored
from utils.errors import DataError

LOCAL_HEADER = 30  # bytes before the name of a member; the last four are the lengths of name and extra field
ENCRYPTED = 0x1
WINDOWS, UNIX = 0, 3  # systems on which an archive was created


class ZipStore(Store):
    """train.zip and val.zip, labelled by train_map.txt and val_map.txt, or else by the folders inside."""

    def __init__(self, root: Path):
        self._root = root

    def has(self, split: str) -> bool:
        return self._archive(split).is_file()

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Opens a split. Raises: DataError for a missing or corrupt archive, or if a mapped member is missing."""
        archive, labels = self._archive(split), self._root / f"{split}_map.txt"
        if not archive.is_file():
            raise DataError(str(archive), "no such archive", "add it: DATA.ZIP_MODE needs train.zip and val.zip")
        mapped = labels if labels.is_file() else None
        key = f"zip\0{archive.resolve()}\0{mapped}\0{classes}\0{chr(0).join(class_names or [])}"
        index, names = stored(key, lambda: _index_zip(archive, split, mapped, class_names, classes))
        return IndexedSource(index, names, ZipStorage(archive))

    def _archive(self, split: str) -> Path:
        return self._root / f"{split}.zip"


class ZipStorage:
    """Members of a zip archive, by offset; their checksums are verified."""

    def __init__(self, archive: Path):
        self._archive, self._files = archive, SharedFiles([archive])

    def read(self, index: Index, i: int) -> bytes:
        columns = ("start", "size", "method", "crc", "unpacked")
        start, size, method, checksum, unpacked = (int(index.columns[c][i]) for c in columns)
        check_size(max(size, unpacked), self.where(index.name(i)))
        header = self._files.read(0, start, LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise self._corrupt(index, i, "no member at its offset")
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = self._files.read(0, start + LOCAL_HEADER + skip, size)
        try:
            data = data if method == zipfile.ZIP_STORED else _inflated(data, unpacked)
        except zlib.error as e:
            raise self._corrupt(index, i, str(e)) from e
        if zlib.crc32(data) != checksum:
            raise self._corrupt(index, i, "its checksum differs")
        return data

    def where(self, name: str) -> str:
        return f"{self._archive}@/{name}"

    def _corrupt(self, index: Index, i: int, reason: str) -> DataError:
        return DataError(self.where(index.name(i)), f"corrupt in the archive ({reason})", "copy the archive again")


def _inflated(data: bytes, size: int) -> bytes:
    """Decompresses at most `size` bytes. Raises: zlib.error if it is longer, truncated or corrupt."""
    stream = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    unpacked = stream.decompress(data, size + 1)
    if len(unpacked) > size or not stream.eof:
        raise zlib.error("longer than its size in the archive" if len(unpacked) > size else "truncated")
    return unpacked


def _index_zip(
    archive: Path, split: str, mapped: Path | None, class_names: Sequence[str] | None, classes: int
) -> tuple[Index, list[str], list[Stamp]]:
    stamps = [stamp(path) for path in (archive, mapped) if path is not None]
    archive_size = archive.stat().st_size
    members = _zip_members(archive, split)
    if mapped is None:
        names, labels, class_list = label_by_folder(sorted(members), class_names, archive)
    else:
        listed = read_list(mapped, classes, class_names)
        names, labels, class_list = below_split(listed.names, split), listed.labels, listed.class_names
        missing = [name for name in names if name not in members]
        if missing:
            problem = f"missing, the first of {len(missing)} listed in {mapped}"
            raise DataError(f"{archive}@/{missing[0]}", problem, "add them")
    chosen = [members[name] for name in names]
    for member in chosen:
        _check_member(member, archive, archive_size)
    index = Index.build(
        names,
        labels,
        start=[m.header_offset for m in chosen],
        size=[m.compress_size for m in chosen],
        method=[m.compress_type for m in chosen],
        crc=[m.CRC for m in chosen],
        unpacked=[min(m.file_size, 2**62) for m in chosen],
    )
    return index, class_list, stamps


def _check_member(member: zipfile.ZipInfo, archive: Path, size: int) -> None:
    """Raises: DataError for a member that cannot be read as an image. Args: size: bytes of the archive."""
    where = f"{archive}@/{member.filename}"
    if member.flag_bits & ENCRYPTED:
        raise DataError(where, "the image is encrypted", "pack the images without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(where, f"unsupported compression type {member.compress_type}", "store or deflate it")
    if member.create_system == UNIX and stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(where, "a symbolic link", "pack the files themselves, without zip -y")
    if not 0 <= member.header_offset <= size - member.compress_size:
        raise DataError(where, "the image lies outside the archive", "copy the archive again")


def _zip_members(archive: Path, split: str) -> dict[str, zipfile.ZipInfo]:
    """Returns the images of an archive by path, without the folder of the split if all are in it."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [(_path(info), info) for info in file.infolist() if not info.is_dir()]
    except Exception as e:  # zipfile raises any type
        raise DataError(str(archive), f"not a readable zip archive ({e})", "copy it again") from e
    shown = [(name, info) for name, info in members if not is_left_out(name)]
    images = [(name, info) for name, info in shown if is_image(name)]
    warn_of_ignored([f"{archive}@/{name}" for name, _ in shown if not is_image(name)])
    names = [posixpath.normpath(safe_path(name, f"{archive}@/{name}")) for name, _ in images]
    return dict(zip(below_split(names, split), (info for _, info in images), strict=True))


def _path(info: zipfile.ZipInfo) -> str:
    """Returns the path of a member; some programs write backslashes on Windows."""
    return info.filename.replace("\\", "/") if info.create_system == WINDOWS else info.filename
