"""Images in tar shards: class folders, or WebDataset's pairs of image and label."""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from data.sources.archive import SharedFiles, below_split, label_by_folder
from data.sources.base import IndexedSource, Store, check_label, check_size, label_limit
from data.sources.index import Index, Stamp, stamp, stored
from data.sources.lists import safe_path
from data.sources.names import is_image, is_left_out, warn_of_ignored
from utils.errors import DataError

_BESIDE = (".txt", ".json")  # stored next to an image in WebDataset shards, besides its label
_LABEL = ".cls"
_DIGITS = 64  # bytes of a label


class TarStore(Store):
    """train.tar and val.tar, or shards train-000.tar, ...: class folders inside, or WebDataset's x.jpg, x.cls."""

    def __init__(self, root: Path):
        self._root = root

    def has(self, split: str) -> bool:
        return bool(self._shards(split))

    def open(self, split: str, class_names: Sequence[str] | None = None, classes: int = 0) -> IndexedSource:
        """Opens a split. Raises: DataError for missing or corrupt shards, or an image without a label."""
        stamps = [stamp(self._root)] if self._root.is_dir() else []
        shards = self._shards(split)
        if not shards:
            remedy = f"add {split}.tar, or set another DATA.DATASET"
            raise DataError(str(self._root), f"contains no {split}*.tar", remedy)
        key = f"tar\0{self._root.resolve()}\0{split}\0{classes}\0{chr(0).join(class_names or [])}"
        index, names = stored(key, lambda: _index_tar(shards, stamps, split, class_names, classes))
        return IndexedSource(index, names, TarStorage(shards))

    def _shards(self, split: str) -> list[Path]:
        return sorted(self._root.glob(f"{split}*.tar"))


class TarStorage:
    """Members of tar shards, by offset."""

    def __init__(self, shards: Sequence[Path]):
        self._shards, self._files = list(shards), SharedFiles(shards)

    def read(self, index: Index, i: int) -> bytes:
        shard, start, size, sparse = (int(index.columns[c][i]) for c in ("shard", "start", "size", "sparse"))
        where = self.where(index.name(i))
        check_size(size, where)
        data = _expanded(self._shards[shard], start, where) if sparse else self._files.read(shard, start, size)
        if len(data) < size:
            raise DataError(where, "the archive is truncated in this image", "copy it again")
        return data

    def where(self, name: str) -> str:
        return f"{self._shards[0].parent}@/{name}"


def _expanded(path: Path, start: int, where: str) -> bytes:
    """Reads a sparse member, whose holes are not stored. Args: start: offset of its header."""
    with open(path, "rb") as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                member = archive.next()
                if member is None:
                    raise tarfile.ReadError("no member at its offset")
                return _contents(archive, member)
        except tarfile.TarError as e:
            raise DataError(where, f"corrupt in the archive ({e})", "copy it again") from e


class _Member(NamedTuple):
    """An image: `name` in its shard, and where it is stored; `start` is that of its header if it is sparse."""

    name: str
    shard: int
    start: int
    size: int
    sparse: bool


class _Shards(NamedTuple):
    """The contents of all shards. `labels`: WebDataset's, by shard and name without .cls; `ignored`: other files."""

    images: list[_Member]
    labels: dict[tuple[int, str], int]
    ignored: list[str]


def _index_tar(
    shards: Sequence[Path], stamps: Sequence[Stamp], split: str, class_names: Sequence[str] | None, classes: int
) -> tuple[Index, list[str], list[Stamp]]:
    found = _Shards([], {}, [])
    stamps = list(stamps)  # of their folder
    for shard, path in enumerate(shards):
        stamps.append(stamp(path))
        try:
            with tarfile.open(path, "r:") as file:
                _list_shard(file, path, shard, found)
        except DataError:
            raise
        except Exception as e:  # tarfile raises any type
            raise DataError(str(path), f"not a readable tar archive ({e})", "copy it again, uncompressed") from e
    warn_of_ignored(found.ignored)
    images = found.images
    names = [image.name for image in images]
    if found.labels:
        numbers, chosen = _numbered(found, shards, classes, class_names)
        names = [f"{shards[image.shard].name}/{image.name}" for image in images]  # keys may repeat
    else:
        names, numbers, chosen = label_by_folder(below_split(names, split), class_names, shards[0].parent)
    index = Index.build(
        names,
        numbers,
        shard=[image.shard for image in images],
        start=[image.start for image in images],
        size=[image.size for image in images],
        sparse=[image.sparse for image in images],
    )
    return index, chosen, stamps


def _list_shard(file: tarfile.TarFile, path: Path, shard: int, found: _Shards) -> None:
    """Adds the members of a shard to `found`. Raises: DataError for an invalid label, or a link that leads nowhere."""
    members = [(posixpath.normpath(member.name), member) for member in file]
    links = {name: _target(name, member) for name, member in members if member.islnk() or member.issym()}
    files = {name: member for name, member in members if member.isfile()} if links else {}
    for name, member in members:
        if is_left_out(name) or not (member.isfile() or name in links):
            continue
        where = f"{path}@/{name}"
        if name.endswith(_LABEL):
            stored = member if member.isfile() else _linked(name, links, files, where)
            found.labels[shard, name.removesuffix(_LABEL)] = _label(file, stored, where)
        elif is_image(name):
            stored = member if member.isfile() else _linked(name, links, files, where)
            sparse = stored.issparse()
            start = stored.offset if sparse else stored.offset_data
            found.images.append(_Member(safe_path(name, where), shard, start, stored.size, sparse))
        elif not name.endswith(_BESIDE):
            found.ignored.append(where)


def _target(name: str, link: tarfile.TarInfo) -> str:
    """Returns the name to which a link refers: hard links are relative to the archive, symbolic ones to the link."""
    folder = posixpath.dirname(name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def _linked(name: str, links: Mapping[str, str], files: Mapping[str, tarfile.TarInfo], where: str) -> tarfile.TarInfo:
    """Follows links to a file of the same archive. Raises: DataError."""
    seen: set[str] = set()
    target = name
    while target in links and target not in seen:
        seen.add(target)
        target = links[target]
    if target not in files:
        problem = f"a link to {links[name]}, which is no file of the archive"
        raise DataError(where, problem, "pack the files themselves, with tar --dereference")
    return files[target]


def _label(file: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> int:
    """Reads the label in a .cls member. Raises: DataError."""
    text = _contents(file, member, _DIGITS).decode("ascii", "backslashreplace")
    try:
        if member.size <= _DIGITS:
            return int(text)
    except ValueError:
        pass
    raise DataError(where, f"the label {text.strip()[:_DIGITS]!r} is not an integer", "write a number from 0")


def _contents(file: tarfile.TarFile, member: tarfile.TarInfo, limit: int = -1) -> bytes:
    return cast(IO[bytes], file.extractfile(member)).read(limit)


def _numbered(
    found: _Shards, shards: Sequence[Path], classes: int, class_names: Sequence[str] | None
) -> tuple[list[int], list[str]]:
    """Returns the labels of the images in WebDataset shards, and the class names.

    The label of x.y.jpg is in x.y.cls, or in x.cls: the key of a sample ends at the first dot.
    Raises: DataError for an image without a label in range, or several images with the same key.
    """
    known = len(class_names or ()) or classes
    limit = label_limit(known, len(found.images))
    alike = Counter((image.shard, _key(image.name)) for image in found.images)
    labels = []
    for image in found.images:
        where, key = f"{shards[image.shard]}@/{image.name}", _key(image.name)
        label = found.labels.get((image.shard, posixpath.splitext(image.name)[0]))
        if label is None:
            label = found.labels.get((image.shard, key))
            if label is None:
                raise DataError(where, "has no label", f"add its label as {key}{_LABEL}")
            if alike[image.shard, key] > 1:
                raise DataError(where, f"is not the only image of {key}", "keep one image per key")
        check_label(label, limit, where, f"correct its {_LABEL} file")
        labels.append(label)
    return labels, list(class_names or map(str, range(known or max(labels, default=0) + 1)))


def _key(name: str) -> str:
    """Returns the key of a WebDataset sample: its path up to the first dot of the file name."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, file.partition(".")[0])
