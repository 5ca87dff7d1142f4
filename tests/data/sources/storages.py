"""An image folder in every other form of storage, for the tests that read it back."""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.tools.builders import Splits, open_data

SPLITS = ("train", "val")
# names in a list or an archive that lead out of the data folder
ESCAPING = ["/etc/passwd.jpg", "../x.jpg", "a/../../x.jpg", "C:\\x.jpg", "a\\..\\..\\x.jpg"]
Kind = Callable[[Path, Path], tuple[str, Path, bool]]  # (folder, target) -> data set, its path, zipped


def files(root: Path, split: str) -> list[tuple[str, int]]:
    """(path below the split's folder, label) of each image, in the order of labels and names."""
    classes = sorted(p.name for p in (root / split).iterdir())
    return [(f"{c}/{p.name}", label) for label, c in enumerate(classes) for p in sorted((root / split / c).iterdir())]


def write_lists(root: Path, target: Path, below: bool = False) -> None:
    """Writes train_map.txt and val_map.txt in reverse order. Args: below: paths start with the split's folder."""
    for split in SPLITS:
        prefix = f"{split}/" if below else ""
        lines = [f"{prefix}{name}\t{label}\n" for name, label in files(root, split)]
        (target / f"{split}_map.txt").write_text("".join(reversed(lines)))


def write_zips(root: Path, target: Path, compression: int = zipfile.ZIP_STORED, below: bool = True) -> None:
    for split in SPLITS:
        with zipfile.ZipFile(target / f"{split}.zip", "w", compression) as archive:
            for name, _ in files(root, split):
                archive.write(root / split / name, f"{split}/{name}" if below else name)


def write_tars(root: Path, target: Path, below: bool = True) -> None:
    for split in SPLITS:
        with tarfile.open(target / f"{split}.tar", "w") as archive:
            for name, _ in files(root, split):
                archive.add(root / split / name, arcname=f"{split}/{name}" if below else name)


def write_shard(path: Path, pairs: list[tuple[Path, str, str | None]]) -> None:
    """Writes a WebDataset shard. Args: pairs: image, key, and the text of its .cls (None for no such member)."""
    with tarfile.open(path, "w") as archive:
        for image, key, label in pairs:
            archive.add(image, arcname=f"{key}.jpg")
            if label is not None:
                info = tarfile.TarInfo(f"{key}.cls")
                info.size = len(label)
                archive.addfile(info, io.BytesIO(label.encode()))


def as_folder(root: Path, target: Path) -> tuple[str, Path, bool]:
    return "imagenet", root, False


def as_zip(root: Path, target: Path) -> tuple[str, Path, bool]:
    write_zips(root, target, zipfile.ZIP_DEFLATED)
    return "imagenet", target, True


def as_zip_with_map(root: Path, target: Path) -> tuple[str, Path, bool]:
    write_zips(root, target, below=False)
    write_lists(root, target)
    return "imagenet", target, True


def as_list(root: Path, target: Path) -> tuple[str, Path, bool]:
    for split in SPLITS:
        shutil.copytree(root / split, target / split)
    write_lists(root, target, below=True)
    return "list", target, False


def as_22k_list(root: Path, target: Path) -> tuple[str, Path, bool]:
    for split in SPLITS:
        shutil.copytree(root / split, target / split)
        entries = [[f"{split}/{name}", label] for name, label in files(root, split)]
        (target / f"ILSVRC2011fall_whole_map_{split}.txt").write_text(json.dumps(entries))
    return "imagenet22K", target, False


def as_tar(root: Path, target: Path) -> tuple[str, Path, bool]:
    write_tars(root, target)
    return "tar", target, False


def as_shards(root: Path, target: Path) -> tuple[str, Path, bool]:
    for split in SPLITS:
        pairs = [(root / split / name, f"{i:05}", str(label)) for i, (name, label) in enumerate(files(root, split))]
        write_shard(target / f"{split}-000.tar", pairs[:6])
        write_shard(target / f"{split}-001.tar", pairs[6:])
    return "tar", target, False


KINDS: list[Kind] = [as_folder, as_zip, as_zip_with_map, as_list, as_22k_list, as_tar, as_shards]


def opened(kind: Kind, root: Path, target: Path) -> Splits:
    """Stores an image folder as `kind` below `target`, and opens it."""
    target.mkdir(exist_ok=True)
    dataset, path, zipped = kind(root, target)
    return open_data(dataset, path, zipped=zipped, cache=zipped)
