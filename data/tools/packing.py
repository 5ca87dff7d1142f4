"""Repacks image folders: zip archives, copies with smaller images, validation images in class folders."""

import functools
import io
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from PIL import Image

from data.pipeline.decoding import ORIENTATION, TIFF, decode, orientation, tiff_bands
from data.pipeline.fork_server import worker_pool
from data.sources.base import Source, read_file, unreadable
from data.sources.folders import FolderStore, imagenet_synsets, images_below, list_split, validation_labels
from data.sources.names import HEIF
from data.sources.zip import ZipStore
from utils.errors import DataError, listing
from utils.files import atomic_path, write_errors
from utils.terminal import track

SPLITS = ("train", "val")


def pack(root: Path, target: Path, replace: bool = False) -> dict[str, int]:
    """Packs an image folder into train.zip and val.zip with train_map.txt and val_map.txt (path, tab, label).

    Images are stored unchanged. Archives get their names once every image has been read back and compared.
    Args: replace: overwrite existing archives. Returns: the number of images in each.
    Raises: DataError; ResourceError if the target is not writable.
    """
    existing = [f"{split}.zip" for split in SPLITS if (target / f"{split}.zip").exists()]
    if existing and not replace:
        raise DataError(str(target), f"already contains {', '.join(existing)}", "pass --force to replace it")
    store = FolderStore(root)
    names = store.class_names("train")
    sources = {split: store.open(split, names) for split in SPLITS}
    with write_errors(target, "TARGET"):
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target) as folder:
            for split, source in sources.items():
                _pack(source, root / split, Path(folder), split)
            for split, source in sources.items():
                _compare(ZipStore(Path(folder)).open(split, names), source)
            for path in sorted(Path(folder).iterdir()):
                with atomic_path(target / path.name) as temporary:
                    path.replace(temporary)
    return {split: len(source) for split, source in sources.items()}


def _pack(source: Source, root: Path, folder: Path, split: str) -> None:
    lines = []
    with zipfile.ZipFile(folder / f"{split}.zip", "w", zipfile.ZIP_STORED) as archive:
        for i in track(range(len(source)), f"{split}.zip", len(source), "images"):
            member = Path(os.path.relpath(source.name(i), root)).as_posix()
            if len(member.split("/")) != 2 or not member.isprintable():
                raise DataError(source.name(i), "a label map does not support this name", "rename it to class/image")
            record = source[i]
            archive.writestr(member, record.data)
            lines.append(f"{member}\t{record.target}\n")
    (folder / f"{split}_map.txt").write_text("".join(lines), encoding="utf-8")


def _compare(packed: Source, source: Source) -> None:
    """Checks that the archive reads back identical. Raises: DataError."""
    same = len(packed) == len(source)
    for i in track(range(len(source)), "comparing", len(source), "images"):
        same = same and packed[i][:2] == source[i][:2]
        if not same:
            raise DataError(source.name(i), "differs when read back from the archive", "check the disk, and this name")


def resize_copy(root: Path, target: Path, short_side: int, quality: int, workers: int) -> tuple[int, int]:
    """Copies an image folder, resizing images to at most `short_side` pixels on the shorter side.

    Smaller images, HEIC images, and images that would lose bit depth or channels, are copied unchanged. An interrupted
    copy continues when it is started again.
    Args: quality: JPEG quality. Returns: the number of images, and of resized ones.
    Raises: DataError for an unreadable image, ResourceError if the target is not writable.
    """
    if target.resolve().is_relative_to(root.resolve()):
        raise DataError(str(target), f"the copy would be inside the original, {root}", "choose another folder")
    if short_side < 1:
        raise DataError("--short-side", f"must be at least 1, got {short_side}", "raise it")
    if not 1 <= quality <= 100:
        raise DataError("--quality", f"must be in 1 to 100, got {quality}", "change it")
    files = [file for split in SPLITS if (root / split).is_dir() for file in images_below(root / split).images]
    if not files:
        raise DataError(str(root), "no images below train/ and val/", "choose a folder that contains them")
    work = functools.partial(_copy, root=root, target=target, short_side=short_side, quality=quality)
    smaller = 0
    with write_errors(target, "TARGET"), worker_pool(workers) as pool:
        _claim(target, f"short side {short_side}, quality {quality}")
        for result in track(pool.map(work, files, chunksize=16), "resizing", len(files), "images"):
            if isinstance(result, DataError):
                raise result
            smaller += result
    return len(files), smaller


def _claim(target: Path, settings: str) -> None:
    """Records the settings of a copy. Raises: DataError if there is a copy with other settings."""
    target.mkdir(parents=True, exist_ok=True)
    note = target / ".resized"
    if note.exists() and (other := note.read_text(encoding="utf-8")) != settings:
        raise DataError(str(target), f"contains a copy with {other}", "choose another folder")
    note.write_text(settings, encoding="utf-8")


def _copy(file: str, root: Path, target: Path, short_side: int, quality: int) -> bool | DataError:
    """Copies one image; returns whether it was resized, or the error."""
    place = target / os.path.relpath(file, root)
    if place.exists() and place.stat().st_mtime >= os.path.getmtime(file):
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        data = read_file(file)
        # by extension, which other programs rely on
        kind = Image.registered_extensions().get(place.suffix.lower(), "JPEG")
        image = None if place.suffix.lower() in HEIF else _to_resize(data, file, kind)
    except OSError as e:
        return unreadable(file, e)
    except DataError as e:
        return e
    with atomic_path(place) as temporary:
        if image is None or min(image.size) <= short_side:
            temporary.write_bytes(data)
            return False
        scale = short_side / min(image.size)
        size = [max(1, round(side * scale)) for side in image.size]
        # each channel separately: training uses transparent colours
        bands = [band.resize(size, Image.Resampling.BICUBIC) for band in image.split()]
        Image.merge(image.mode, bands).save(temporary, kind, quality=quality, exif=_orientation(data))
    return True


def _to_resize(data: bytes, file: str, kind: str) -> Image.Image | None:
    """Decodes to RGB(A) for the format `kind`; None if channels or bit depth would be lost. Raises: DataError."""
    try:
        image = decode(data, file)
    except DataError:
        if not data.startswith(TIFF) or tiff_bands(data, file) is None:
            raise
        return None  # a different number of bands
    with Image.open(io.BytesIO(data)) as original:
        if original.mode == "RGBA" and kind in ("PNG", "TIFF", "WEBP"):
            image.putalpha(original.getchannel("A"))
            return image
        return image if original.mode in ("1", "L", "P", "RGB", "YCbCr") else None


def _orientation(data: bytes) -> Image.Exif:
    """Returns the metadata that remains valid after resizing."""
    kept, turn = Image.Exif(), orientation(data)
    if turn in range(2, 9):
        kept[ORIENTATION] = turn
    return kept


def sort_validation(root: Path) -> int:
    """Moves ImageNet's flat validation images into one folder per class.

    Returns: the number of images moved, 0 if they are already in class folders. Raises: DataError, before anything is
    moved, if an image is not from ImageNet's validation set, or if there are no images.
    """
    folder, labels, synsets = root / "val", validation_labels(), imagenet_synsets()
    if not folder.is_dir():
        raise DataError(str(root), "no folder val/", "choose a folder with the validation images in val/")
    files = list_split(folder).images
    if not files and any((folder / synset).is_dir() for synset in synsets):
        return 0
    strange = [name for name in files if name not in labels]
    if strange or not files:
        problem = f"not ImageNet's validation images: {listing(strange)}" if strange else "contains no images"
        remedy = "use ImageNet's, named ILSVRC2012_val_00000001.JPEG and so on"
        raise DataError(str(folder), problem, remedy)
    with write_errors(folder, "FOLDER"):
        for name in files:
            (folder / synsets[labels[name]]).mkdir(exist_ok=True)
            shutil.move(folder / name, folder / synsets[labels[name]] / name)
    return len(files)
