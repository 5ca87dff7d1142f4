"""Other forms of an image folder: zip archives, a copy with smaller images, validation images in class folders."""

import functools
import io
import multiprocessing
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data.errors import DataError, LoaderError, some
from data.pipeline.decoding import decode
from data.sources.archives import ZipStore
from data.sources.base import Source
from data.sources.folders import FolderStore, imagenet_synsets, images_below, is_image, validation_labels

PARTS = ("train", "val")
ORIENTATION = 0x0112  # EXIF


def pack(root: Path, target: Path) -> dict[str, int]:
    """train.zip and val.zip with train_map.txt and val_map.txt (path, tab, label) from an image folder.

    Images are stored as they are. An archive appears under its name when every image was read back and is the same.
    Returns: images in each. Raises: DataError, LoaderError if the target cannot be written.
    """
    store = FolderStore(root)
    names = store.class_names("train")
    sources = {part: store.open(part, names) for part in PARTS}
    with _written(target):
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target) as folder:
            for part, source in sources.items():
                _pack(source, root / part, Path(folder), part)
            for part, source in sources.items():
                _compare(ZipStore(Path(folder)).open(part, names), source)
            for path in sorted(Path(folder).iterdir()):
                path.replace(target / path.name)
    return {part: len(source) for part, source in sources.items()}


def _pack(source: Source, root: Path, folder: Path, part: str) -> None:
    lines = []
    with zipfile.ZipFile(folder / f"{part}.zip", "w", zipfile.ZIP_STORED) as archive:
        for i in tqdm(range(len(source)), desc=f"{part}.zip", unit=" images", disable=None):
            member = Path(os.path.relpath(source.name(i), root)).as_posix()
            if len(member.split("/")) != 2 or not member.isprintable():
                raise DataError(f"a name that archives with a map cannot hold: {source.name(i)}: class/image, no more")
            archive.writestr(member, source.read(i))
            lines.append(f"{member}\t{source.label(i)}\n")
    (folder / f"{part}_map.txt").write_text("".join(lines), encoding="utf-8")


def _compare(packed: Source, source: Source) -> None:
    """Whether the program reads the same from an archive."""
    same = len(packed) == len(source)
    for i in tqdm(range(len(source)), desc="comparing", unit=" images", disable=None):
        same = same and packed.label(i) == source.label(i) and packed.read(i) == source.read(i)
        if not same:
            raise DataError(f"not the same when read back: {source.name(i)}: check the disk, and this name")


def resize_copy(root: Path, target: Path, short_side: int, quality: int, workers: int) -> tuple[int, int]:
    """A copy of an image folder whose images have at most `short_side` pixels on their shorter side.

    Smaller images are copied as they are. A copy that was interrupted goes on where it stood.
    Args: quality of the JPEGs written. Returns: images, and how many of them became smaller.
    Raises: DataError for an image that cannot be read, LoaderError if the target cannot be written.
    """
    if target.resolve().is_relative_to(root.resolve()):
        raise DataError(f"the copy would lie among the originals: {target}: name another folder")
    if short_side < 1 or not 1 <= quality <= 100:
        raise DataError(f"short side {short_side}, quality {quality}: give pixels from 1 on, and 1 to 100")
    files = [file for part in PARTS for file in images_below(root / part)[0]]
    if not files:
        raise DataError(f"no images below train/ and val/: {root}: name a folder that holds them")
    work = functools.partial(_copy, root=root, target=target, short_side=short_side, quality=quality)
    smaller = 0
    context = multiprocessing.get_context("forkserver")
    with _written(target), ProcessPoolExecutor(max(1, workers), context) as pool:
        _claim(target, f"short side {short_side}, quality {quality}")
        for result in tqdm(pool.map(work, files, chunksize=16), total=len(files), disable=None):
            if isinstance(result, DataError):
                raise result
            smaller += result
    return len(files), smaller


def _claim(target: Path, settings: str) -> None:
    """A copy goes on with the settings it was begun with. Raises: DataError."""
    target.mkdir(parents=True, exist_ok=True)
    note = target / ".resized"
    if note.exists() and note.read_text(encoding="utf-8") != settings:
        raise DataError(f"a copy with {note.read_text(encoding='utf-8')} lies there: {target}: name another folder")
    note.write_text(settings, encoding="utf-8")


def _copy(file: str, root: Path, target: Path, short_side: int, quality: int) -> bool | DataError:
    """Whether the image was made smaller; an error goes back as a value."""
    place = target / os.path.relpath(file, root)
    if place.exists() and place.stat().st_mtime >= os.path.getmtime(file):
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.unfinished")
    try:
        data = Path(file).read_bytes()
        image = decode(data, file)
    except OSError as e:
        return DataError(f"cannot read an image ({e.strerror}): {file}: restore or remove it")
    except DataError as e:
        return e
    scale = short_side / min(image.size)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.size]
        # as the file's ending says: other programs go by it
        kind = Image.registered_extensions().get(place.suffix.lower(), "JPEG")
        image.resize(size, Image.Resampling.BICUBIC).save(unfinished, kind, quality=quality, exif=_orientation(data))
    else:
        unfinished.write_bytes(data)
    unfinished.replace(place)
    return scale < 1


def _orientation(data: bytes) -> Image.Exif:
    """Of an image's metadata what still holds for another size."""
    kept = Image.Exif()
    try:
        with Image.open(io.BytesIO(data)) as image:
            turn = image.getexif().get(ORIENTATION)
    except Exception:  # malformed metadata, in any kind of error
        turn = None
    if turn in range(2, 9):
        kept[ORIENTATION] = turn
    return kept


def sort_validation(root: Path) -> int:
    """Move ImageNet's flat validation images into a folder for each class; returns how many.

    Raises: DataError, with nothing moved, if an image is none of ImageNet's, or there is none.
    """
    folder, labels, synsets = root / "val", validation_labels(), imagenet_synsets()
    if not folder.is_dir():
        raise DataError(f"no folder val/ in {root}: name one that holds the validation images in val/")
    files = sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name))
    strange = [name for name in files if name not in labels]
    if strange or not files:
        raise DataError(
            f"no validation images of ImageNet: {folder}: {some(strange) or 'there are no images in it'}:"
            " they are called ILSVRC2012_val_00000001.JPEG and so on"
        )
    with _written(folder):
        for name in files:
            (folder / synsets[labels[name]]).mkdir(exist_ok=True)
            shutil.move(folder / name, folder / synsets[labels[name]] / name)
    return len(files)


@contextmanager
def _written(target: Path) -> Iterator[None]:
    """Say in one line that something cannot be written."""
    try:
        yield
    except OSError as e:
        raise LoaderError(f"cannot write ({e.strerror}): {target}: name another folder, or make room") from e
