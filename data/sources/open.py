"""The samples of a data set, wherever they lie: bytes and labels by number, with one class map for both halves."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data.errors import DataError, some
from data.sources.archives import TarStore, ZipStore, warm
from data.sources.base import Source
from data.sources.digits import write_digits
from data.sources.folders import FolderStore
from data.sources.huggingface import ReaderStore
from data.sources.lists import ListStore
from data.sources.synthetic import SyntheticStore

log = logging.getLogger(__name__)


class Store(Protocol):
    """A data set as it lies on disk, in parts "train" and "val"."""

    def has(self, part: str) -> bool: ...
    def class_names(self, part: str) -> list[str]:
        """In label order, as this part alone tells them. Raises: DataError."""
        ...

    def open(self, part: str, class_names: Sequence[str] | None = None, classes: int = 0) -> Source:
        """Args: class_names: in label order, None for the part's own; classes: how many, 0 if not known.

        Raises: DataError.
        """
        ...


STORES: dict[str, Callable[[Path], Store]] = {
    "imagenet": FolderStore,
    "imagenet22K": ListStore,
    "list": ListStore,
    "tar": TarStore,
    "synthetic": SyntheticStore,
}


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
        """What a checkpoint keeps: class map, training samples of each class, digest of names and labels."""
        return {
            "class_names": list(self.class_names),
            "data_counts": self.train.counts(),
            "data_fingerprint": self.train.fingerprint(),
        }


def open_sources(
    dataset: str,
    path: str,
    *,
    zipped: bool = False,
    training: bool,
    classes: int = 0,
    cache: bool = False,
    share: tuple[int, int] = (0, 1),
    class_names: Sequence[str] | None = None,
    usual_names: Sequence[str] | None = None,
) -> Sources:
    """Find the training and validation samples of a data set.

    For training the class map comes from train. For evaluation it is `class_names` (a checkpoint's), else `usual_names`
    (ImageNet's synsets) if all classes of val are among them, else train's where that lies there too, else val's own.
    A class that is merely absent from val shifts nothing.

    Args: training: whether train is needed; classes: how many there must be, 0 for any number; cache: read zip
    archives into memory first; share: number of this process and of all processes of the machine, each reads its part.
    Raises: DataError, with what is missing and where.
    """
    store = _find_store(dataset, path, zipped, training)
    if usual_names and classes not in (0, len(usual_names)):
        usual_names = None
    if zipped and cache:
        for part in ("train", "val") if training else ("val",):
            warm(Path(path, f"{part}.zip"), *share)
    train = store.open("train", None, classes) if training else None
    if train is not None:
        class_names = train.class_names
    elif class_names is None and usual_names and set(store.class_names("val")) <= set(usual_names):
        class_names = usual_names
    elif class_names is None and store.has("train"):
        class_names = store.class_names("train") if not classes else store.open("train", None, classes).class_names
    val = store.open("val", class_names, classes)
    if classes and len(val.class_names) != classes:
        raise DataError(f"{path} has {len(val.class_names)} classes, not {classes}: MODEL.NUM_CLASSES: set it to 0")
    sources = Sources(val, train)
    log.info("data: %s", sources.describe())
    return sources


def _find_store(dataset: str, path: str, zipped: bool, training: bool) -> Store:
    if dataset.startswith("timm:"):
        return ReaderStore(dataset.removeprefix("timm:"), path)
    if dataset == "digits":
        return FolderStore(write_digits(Path(path) if path else Path("datasets") / "digits"))
    if dataset not in STORES:
        raise DataError(
            f"no data set is called {dataset!r}: DATA.DATASET: choose one of digits, timm:NAME, {', '.join(STORES)}"
            " (imagenet is any image folder)"
        )
    if dataset == "synthetic":
        return SyntheticStore(path)
    if not path:
        raise DataError(
            "no data: DATA.DATA_PATH: give --data-path FOLDER that holds train/ and val/"
            " (or try: bash scripts/quickstart.sh, which needs none)"
        )
    store = ZipStore(Path(path)) if zipped else STORES[dataset](Path(path))
    if dataset == "imagenet" and not zipped:
        for part in ("train", "val") if training else ("val",):
            if not store.has(part):
                raise DataError(f"no folder {part}/ in {path}: --data-path: it must hold train/ and val/")
    return store


def chosen_classes(choice: str, source: Source) -> list[int]:
    """Labels that TEST.CLASSES names: none for "", those with samples for "present", else a file with a name a line.

    Raises: DataError for a file that cannot be read, or a name that is no class.
    """
    if not choice:
        return []
    if choice == "present":
        return [label for label, count in enumerate(source.counts()) if count]
    try:
        names = [line.strip() for line in Path(choice).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as e:
        raise DataError(f"cannot read the names of classes ({e.strerror}): {choice}: TEST.CLASSES takes a file") from e
    labels = {name: label for label, name in enumerate(source.class_names)}
    unknown = [name for name in names if name not in labels]
    if unknown or not names:
        raise DataError(f"no such classes: {choice}: {some(unknown) or 'the file is empty'}: give a class name a line")
    chosen = {labels[name] for name in names}
    if any(count and label not in chosen for label, count in enumerate(source.counts())):
        raise DataError(f"val/ holds classes beyond those chosen: {choice}: remove their folders, or add their names")
    return sorted(chosen)
