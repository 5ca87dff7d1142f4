"""Other forms of an image folder: zip archives, a copy with smaller images, validation images in class folders."""

import functools
import io
import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data.decoding import decode
from data.errors import DataError, LoaderError, some
from data.folders import FolderStore, imagenet_synsets, images_below, is_image, validation_labels

PARTS = ("train", "val")


def pack(root: Path, target: Path) -> dict[str, int]:
    """train.zip and val.zip with train_map.txt and val_map.txt (path, tab, label) from an image folder.

    Images are stored as they are. An archive appears under its name when every image was read back and is the same.
    Returns: images in each. Raises: DataError, LoaderError if the target cannot be written.
    """
    store = FolderStore(root)
    names = store.class_names("train")
    counts = {}
    for part in PARTS:
        source = store.open(part, names)
        members = [Path(os.path.relpath(source.name(i), root / part)).as_posix() for i in range(len(source))]
        lines = [f"{member}\t{source.label(i)}\n" for i, member in enumerate(members)]
        with _written(target):
            target.mkdir(parents=True, exist_ok=True)
            unfinished, labels = target / f".{part}.zip.unfinished", target / f"{part}_map.txt"
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
                for i, member in enumerate(tqdm(members, desc=f"{part}.zip", unit=" images", disable=None)):
                    archive.writestr(member, source.read(i))
            with zipfile.ZipFile(unfinished) as archive:
                for i, member in enumerate(tqdm(members, desc="comparing", unit=" images", disable=None)):
                    if archive.read(member) != source.read(i):
                        raise DataError(f"not the same when read back: {unfinished}@/{member}: check the disk")
            labels.write_text("".join(lines), encoding="utf-8")
            unfinished.replace(target / f"{part}.zip")
        counts[part] = len(members)
    return counts


def resize_copy(root: Path, target: Path, short_side: int, quality: int, workers: int) -> tuple[int, int]:
    """A copy of an image folder whose images have at most `short_side` pixels on their shorter side.

    Smaller images are copied as they are. A copy that was interrupted goes on where it stood.
    Args: quality of the JPEGs written. Returns: images, and how many of them became smaller.
    Raises: DataError for an image that cannot be read, LoaderError if the target cannot be written.
    """
    if target.resolve() == root.resolve():
        raise DataError(f"the copy would replace the originals: {target}: name another folder")
    files = [file for part in PARTS for file in images_below(root / part)[0]]
    if not files:
        raise DataError(f"no images below train/ and val/: {root}: name a folder that holds them")
    work = functools.partial(_copy, root=root, target=target, short_side=short_side, quality=quality)
    smaller = 0
    with _written(target), multiprocessing.get_context("forkserver").Pool(max(1, workers)) as pool:
        for result in tqdm(pool.imap_unordered(work, files, chunksize=16), total=len(files), disable=None):
            if isinstance(result, DataError):
                raise result
            smaller += result
    return len(files), smaller


def _copy(file: str, root: Path, target: Path, short_side: int, quality: int) -> bool | DataError:
    """Whether the image was made smaller; an error goes back as a value."""
    place = target / os.path.relpath(file, root)
    if place.exists():
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.unfinished")
    try:
        data = Path(file).read_bytes()
        image = decode(data, file)
    except DataError as e:
        return e
    scale = short_side / min(image.size)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.size]
        # as the file's ending says: other programs go by it
        kind = Image.registered_extensions().get(place.suffix.lower(), "JPEG")
        with Image.open(io.BytesIO(data)) as original:
            exif = original.getexif()  # its orientation still holds
        image.resize(size, Image.Resampling.BICUBIC).save(unfinished, kind, quality=quality, exif=exif)
    else:
        unfinished.write_bytes(data)
    unfinished.replace(place)
    return scale < 1


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
