"""Images in tar shards: class folders, or WebDataset's pairs of image and label."""

import posixpath
import tarfile
from collections.abc import Sequence
from pathlib import Path

from data.sources.archive import SharedFile, below_split, label_by_folder
from data.sources.base import IndexedSource, Store
from data.sources.index import Index, Stamp, stamp, stored
from data.sources.lists import safe_path
from data.sources.names import is_image, is_left_out, warn_of_ignored
from utils.errors import DataError

_BESIDE = (".cls", ".txt", ".json")  # stored next to an image in WebDataset shards


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
            raise DataError(str(self._root), f"contains no {split}*.tar", "add it, or set another DATA.DATASET")
        key = f"tar\0{self._root.resolve()}\0{split}\0{classes}\0{chr(0).join(class_names or [])}"
        index, names = stored(key, lambda: _index_tar(shards, stamps, split, class_names, classes))
        return IndexedSource(index, names, TarStorage(shards))

    def _shards(self, split: str) -> list[Path]:
        return sorted(self._root.glob(f"{split}*.tar"))


class TarStorage:
    """Members of tar shards, by offset."""

    def __init__(self, shards: Sequence[Path]):
        self._folder, self._files = shards[0].parent, [SharedFile(shard) for shard in shards]

    def read(self, index: Index, i: int) -> bytes:
        shard, start, size = (int(index.columns[c][i]) for c in ("shard", "start", "size"))
        data = self._files[shard].read(start, size)
        if len(data) < size:
            raise DataError(self.where(index.name(i)), "the archive is truncated in this image", "copy it again")
        return data

    def where(self, name: str) -> str:
        return f"{self._folder}@/{name}"


def _index_tar(
    shards: Sequence[Path], stamps: Sequence[Stamp], split: str, class_names: Sequence[str] | None, classes: int
) -> tuple[Index, list[str], list[Stamp]]:
    images: list[tuple[str, int, int, int]] = []  # name, shard, start, size
    labels: dict[tuple[int, str], int] = {}  # WebDataset: (shard, key) -> label
    ignored: list[str] = []
    stamps = list(stamps)  # of their folder
    for shard, path in enumerate(shards):
        try:
            stamps.append(stamp(path))
            with tarfile.open(path, "r:") as file:
                for member in file:
                    name = posixpath.normpath(member.name)
                    if is_left_out(name):
                        continue
                    if member.isfile() and name.endswith(".cls"):
                        text = file.extractfile(member)
                        labels[shard, name.removesuffix(".cls")] = int(text.read()) if text else -1
                    elif member.isfile() and is_image(name):
                        images.append((safe_path(name, f"{path}@/{name}"), shard, member.offset_data, member.size))
                    elif member.isfile() and not name.endswith(_BESIDE):
                        ignored.append(f"{path}@/{name}")
        except (OSError, tarfile.TarError, ValueError) as e:
            raise DataError(str(path), f"not a readable tar archive ({e})", "copy it again, uncompressed") from e
    warn_of_ignored(ignored)
    names = [name for name, *_ in images]
    if labels:
        numbers = [labels.get((shard, posixpath.splitext(name)[0]), -1) for name, shard, _, _ in images]
        chosen = _numbered(numbers, names, classes, class_names, shards[0].parent)
        names = [f"{shards[shard].name}/{name}" for name, shard, _, _ in images]  # keys may repeat
    else:
        names, numbers, chosen = label_by_folder(below_split(names, split), class_names, shards[0].parent)
    index = Index.build(
        names,
        numbers,
        shard=[shard for _, shard, _, _ in images],
        start=[start for _, _, start, _ in images],
        size=[size for _, _, _, size in images],
    )
    return index, chosen, stamps


def _numbered(
    labels: Sequence[int], names: Sequence[str], classes: int, class_names: Sequence[str] | None, where: Path
) -> list[str]:
    """Returns class names for numeric labels. Raises: DataError for a label out of range."""
    chosen = list(class_names or [str(i) for i in range(classes or max(labels, default=0) + 1)])
    bad = next((i for i, label in enumerate(labels) if not 0 <= label < len(chosen)), None)
    if bad is not None:
        problem = f"no label in 0 to {len(chosen) - 1}"
        raise DataError(f"{where}@/{names[bad]}", problem, "write one to its .cls file")
    return chosen
