"""Images in zip archives, with or without a label map."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from data.sources.archive import SharedFile, below_split, label_by_folder
from data.sources.base import IndexedSource, Store
from data.sources.index import Index, Stamp, stamp, stored
from data.sources.lists import read_list, safe_path
from data.sources.names import is_image, is_left_out, warn_of_ignored
from utils.errors import DataError

LOCAL_HEADER = 30  # bytes before the name of a member; the last four are the lengths of name and extra field
ENCRYPTED = 0x1


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
        self._archive, self._file = archive, SharedFile(archive)

    def read(self, index: Index, i: int) -> bytes:
        start, size, method, checksum = (int(index.columns[c][i]) for c in ("start", "size", "method", "crc"))
        header = self._file.read(start, LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise self._corrupt(index, i, "no member at its offset")
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = self._file.read(start + LOCAL_HEADER + skip, size)
        try:
            data = data if method == zipfile.ZIP_STORED else zlib.decompress(data, wbits=-zlib.MAX_WBITS)
        except zlib.error as e:
            raise self._corrupt(index, i, str(e)) from e
        if zlib.crc32(data) != checksum:
            raise self._corrupt(index, i, "its checksum differs")
        return data

    def where(self, name: str) -> str:
        return f"{self._archive}@/{name}"

    def _corrupt(self, index: Index, i: int, reason: str) -> DataError:
        return DataError(self.where(index.name(i)), f"corrupt in the archive ({reason})", "copy the archive again")


def _index_zip(
    archive: Path, split: str, mapped: Path | None, class_names: Sequence[str] | None, classes: int
) -> tuple[Index, list[str], list[Stamp]]:
    stamps = [stamp(path) for path in (archive, mapped) if path is not None]
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
    secret = next((m.filename for m in chosen if m.flag_bits & ENCRYPTED), None)
    if secret is not None:
        raise DataError(f"{archive}@/{secret}", "the image is encrypted", "pack the images without a password")
    odd = next((m for m in chosen if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), None)
    if odd is not None:
        problem = f"unsupported compression type {odd.compress_type}"
        raise DataError(f"{archive}@/{odd.filename}", problem, "store or deflate it")
    index = Index.build(
        names,
        labels,
        start=[m.header_offset for m in chosen],
        size=[m.compress_size for m in chosen],
        method=[m.compress_type for m in chosen],
        crc=[m.CRC for m in chosen],
    )
    return index, class_list, stamps


def _zip_members(archive: Path, split: str) -> dict[str, zipfile.ZipInfo]:
    """Returns the images of an archive by path, without the folder of the split if all are in it."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [info for info in file.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as e:
        raise DataError(str(archive), f"not a readable zip archive ({e})", "copy it again") from e
    shown = [info for info in members if not is_left_out(info.filename)]
    infos = [info for info in shown if is_image(info.filename)]
    warn_of_ignored([f"{archive}@/{info.filename}" for info in shown if not is_image(info.filename)])
    names = below_split([safe_path(info.filename, f"{archive}@/{info.filename}") for info in infos], split)
    return dict(zip(names, infos, strict=True))
