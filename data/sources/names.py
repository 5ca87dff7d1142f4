"""Names of files and folders: which are images, which are ignored, and which layouts look wrong."""

import logging
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from utils.errors import DataError, count, listing

log = logging.getLogger(__name__)

IMAGENET_CLASSES = (1000, 21841)
# of phones; decoded by an optional package
HEIF = (".heic", ".heif", ".hif")
# decoded by Pillow and used in datasets
EXTENSIONS = (
    *HEIF,
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".dib", ".tif"),
    *(".tiff", ".webp", ".gif", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".tga", ".pcx", ".ico", ".sgi", ".qoi"),
)
# created by operating systems and network storage next to the images, in lower case
_SYSTEM = {
    *("@eadir", "#recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "desktop.ini"),
}


def is_left_out(name: str) -> bool:
    """Returns whether a file or folder is hidden (.DS_Store, .ipynb_checkpoints) or a system file (@eaDir, __MACOSX).

    Args: name: may also be a path in an archive; everything below such a folder is left out.
    """
    return any(
        part.lower() in _SYSTEM or (part.startswith(".") and part not in (".", "..")) for part in name.split("/")
    )


def is_image(name: str) -> bool:
    """Returns whether a file has an image extension and its own name is not ignored."""
    return name.lower().endswith(EXTENSIONS) and not is_left_out(name.rpartition("/")[2])


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Returns whether classes are ImageNet's: some are synsets, or there are as many, as where labels are numbers."""
    return len(class_names) in IMAGENET_CLASSES or any(map(is_synset, class_names))


def is_synset(class_name: str) -> bool:
    """Returns whether a class is named by WordNet, as ImageNet's are: n01440764."""
    return len(class_name) == 9 and class_name[0] == "n" and class_name[1:].isdigit()


def check_heif(files: Sequence[str]) -> None:
    """Raises: DataError if there are HEIC images and no decoder for them is installed."""
    found = [name for name in files if name.lower().endswith(HEIF)]
    if found and find_spec("pi_heif") is None:
        problem = f"{count(len(found), 'HEIC image')}, which Pillow does not decode: {listing(found, 3)}"
        raise DataError("DATA.DATA_PATH", problem, "pip install pi-heif, or convert them to JPEG")


def warn_of_ignored(files: Sequence[str]) -> None:
    """Logs one line about files without an image extension, if there are any."""
    if files:
        what = count(len(files), "file without an image extension", "files without an image extension")
        log.warning("left out: %s: %s", what, listing(files, 3))


def warn_of_loose(images: Sequence[str], folder: object) -> None:
    """Logs one line about images beside the class folders, if there are any."""
    if images:
        what = f"{count(len(images), 'image')} beside the class folders of {folder}"
        log.warning("left out: %s: %s", what, listing(images, 3))


def nested_classes(names: Iterable[str]) -> list[str]:
    """Returns the subfolders of the only class if they look like the classes: at least two, with all of its images.

    Args: names: paths of images, class/.../image.
    """
    classes, inner = set(), set()
    for name in names:
        folders = name.split("/")[:-1]
        classes.update(folders[:1])
        if len(classes) > 1 or len(folders) < 2:
            return []
        inner.add(folders[1])
    return sorted(inner) if len(inner) > 1 else []


def warn_of_nested(names: Iterable[str], where: object) -> None:
    """Logs one line if the class folders seem to be one level too deep. Args: as for `nested_classes`."""
    inner = nested_classes(names)
    if inner:
        log.warning("one class, with subfolders that may be the classes: %s: %s", where, listing(inner))
