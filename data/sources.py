"""Where samples come from: bytes and labels by number, the same for every storage."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from data.digits import write_digits
from data.errors import DataError

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class Source(Protocol):
    """Samples by number; `class_names[label(i)]` is the class of sample i."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...
    def read(self, index: int) -> bytes:
        """The encoded image. Raises: DataError if it cannot be read."""
        ...

    def label(self, index: int) -> int: ...
    def name(self, index: int) -> str:
        """Path of the sample, for messages."""
        ...

    def fingerprint(self) -> str:
        """Digest of class names, file names and labels."""
        ...


class ImageFolder:
    """A folder with a folder of images for each class; files lie at any depth below it.

    Args: root; class_names: the classes in label order, None to take the folders' names, sorted. Hidden files and
    folders and files that are no images by their ending are passed over.
    Raises: DataError for a missing root, an empty class, or a folder that is none of `class_names`.
    """

    def __init__(self, root: Path, class_names: Sequence[str] | None = None):
        self.root = root
        found = _class_folders(root)
        self.class_names = tuple(found if class_names is None else class_names)
        strange = sorted(set(found) - set(self.class_names))
        if strange:
            raise DataError(
                f"{len(strange)} classes of {root} are not among the {len(self.class_names)} of training:"
                f" {_some(strange)}: rename or remove these folders"
            )
        labels = {name: i for i, name in enumerate(self.class_names)}
        self._paths: list[str] = []
        self._labels: list[int] = []
        for name in found:
            files = _images_below(root / name)
            if not files:
                raise DataError(f"no images for class {name}: {root / name}: add some or remove the folder")
            self._paths += [os.path.relpath(f, root) for f in files]
            self._labels += [labels[name]] * len(files)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> bytes:
        try:
            return (self.root / self._paths[index]).read_bytes()
        except OSError as e:
            raise DataError(f"cannot read an image ({e.strerror}): {self.name(index)}: restore or remove it") from e

    def label(self, index: int) -> int:
        return self._labels[index]

    def name(self, index: int) -> str:
        return str(self.root / self._paths[index])

    def fingerprint(self) -> str:
        digest = sha256()
        for part in ("\0".join(self.class_names), "\0".join(self._paths), bytes_of(self._labels)):
            digest.update(part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def bytes_of(labels: Iterable[int]) -> bytes:
    return ",".join(map(str, labels)).encode()


@dataclass(frozen=True)
class Sources:
    """The two halves of a data set, with one class map."""

    val: Source
    known_train: Source | None

    @property
    def train(self) -> Source:
        """Raises: DataError if the data set was opened for evaluation only."""
        if self.known_train is None:
            raise DataError("no training samples were opened")
        return self.known_train

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.val.class_names

    def describe(self) -> str:
        """For the log: how many samples and classes."""
        train = f"{len(self.known_train):,} training and " if self.known_train is not None else ""
        return f"{train}{len(self.val):,} validation samples, {len(self.class_names):,} classes"

    def identity(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the class map, a digest of the training samples' names and labels."""
        return {"class_names": list(self.class_names), "data_fingerprint": self.train.fingerprint()}


def open_sources(
    dataset: str,
    path: str,
    *,
    zipped: bool,
    training: bool,
    classes: int = 0,
    class_names: Sequence[str] | None = None,
    usual_names: Sequence[str] | None = None,
) -> Sources:
    """Find the training and validation samples of a data set.

    For training the class map comes from train/. For evaluation it is `class_names` (a checkpoint's), else the folders
    of train/, else `usual_names` (ImageNet's synsets) if all folders of val/ are among them, else the folders of val/.
    A class that is merely absent from val/ shifts nothing.

    Args: training: whether train/ is needed; classes: how many there must be, 0 for any number.
    Raises: DataError, with what is missing and where.
    """
    if zipped:
        raise DataError("zip archives cannot be read yet: DATA.ZIP_MODE: unpack them into train/ and val/ folders")
    if dataset == "digits":
        root = write_digits(Path(path) if path else Path("datasets") / "digits")
    elif dataset in ("imagenet", "imagenet22K"):
        root = _data_folder(path, training)
    else:
        raise DataError(
            f"no data set is called {dataset!r}: DATA.DATASET: choose imagenet (any image folder) or digits"
        )
    train = ImageFolder(root / "train") if training else None
    if train is not None:
        class_names = train.class_names
    elif class_names is None and (root / "train").is_dir():
        class_names = _class_folders(root / "train")
    elif class_names is None and usual_names and set(_class_folders(root / "val")) <= set(usual_names):
        class_names = usual_names
    val = ImageFolder(root / "val", class_names)
    if classes and len(val.class_names) != classes:
        raise DataError(f"{root} has {len(val.class_names)} classes, not {classes}: MODEL.NUM_CLASSES: set it to 0")
    sources = Sources(val, train)
    log.info("data: %s", sources.describe())
    return sources


def chosen_classes(choice: str, source: Source) -> list[int]:
    """Labels that TEST.CLASSES names: none for "", those with samples for "present", else a file with a name a line.

    Raises: DataError for a file that cannot be read, or a name that is no class.
    """
    if not choice:
        return []
    if choice == "present":
        return sorted({source.label(i) for i in range(len(source))})
    try:
        names = [line.strip() for line in Path(choice).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as e:
        raise DataError(f"cannot read the names of classes ({e.strerror}): {choice}: TEST.CLASSES takes a file") from e
    labels = {name: label for label, name in enumerate(source.class_names)}
    unknown = [name for name in names if name not in labels]
    if unknown or not names:
        raise DataError(f"no such classes: {choice}: {_some(unknown) or 'the file is empty'}: give a class name a line")
    chosen = {labels[name] for name in names}
    if any(source.label(i) not in chosen for i in range(len(source))):
        raise DataError(f"val/ holds classes beyond those chosen: {choice}: remove their folders, or add their names")
    return sorted(chosen)


def _data_folder(path: str, training: bool) -> Path:
    if not path:
        raise DataError(
            "no data: DATA.DATA_PATH: give --data-path FOLDER that holds train/ and val/"
            " (or try: bash scripts/quickstart.sh, which needs none)"
        )
    root = Path(path)
    for part in ("train", "val") if training else ("val",):
        if not (root / part).is_dir():
            raise DataError(f"no folder {part}/ in {root}: --data-path: it must hold train/ and val/")
    return root


def _class_folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as e:
        raise DataError(f"cannot list a folder ({e.strerror}): {root}: check the path and its permissions") from e
    if not names:
        raise DataError(f"no class folders: {root}: it must hold a folder of images for each class")
    return names


def _images_below(folder: Path) -> list[str]:
    files: list[str] = []
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = {f: os.path.realpath(os.path.join(parent, f)) for f in folders if not f.startswith(".")}
        folders[:] = sorted(f for f, path in real.items() if path not in seen)  # a link may lead back up
        seen.update(real.values())
        images = (n for n in sorted(names) if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
        files += [os.path.join(parent, n) for n in images]
    return files


def _some(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
