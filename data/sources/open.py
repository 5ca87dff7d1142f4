"""Opens the splits of a data set, in any form of storage, with one class map for both."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from data.sources.archive import fill_page_cache
from data.sources.base import Source, Store
from data.sources.digits import write_digits
from data.sources.folders import FolderStore
from data.sources.huggingface import ReaderStore
from data.sources.lists import ListStore
from data.sources.synthetic import SyntheticStore
from data.sources.tar import TarStore
from data.sources.unlabelled import UnlabelledStore
from data.sources.zip import ZipStore
from utils.distributed.world import World
from utils.errors import DataError, did_you_mean, listing
from utils.terminal import log_lines

log = logging.getLogger(__name__)
_OTHER_NAMES = {"train": ("training", "Train", "trn"), "val": ("validation", "valid", "Val", "test", "dev")}
SHOWN = 5  # samples that are named at the start

STORES: dict[str, Callable[[Path], Store]] = {
    "imagenet": FolderStore,
    "imagenet22K": ListStore,
    "list": ListStore,
    "tar": TarStore,
    "synthetic": SyntheticStore,
}


@dataclass(frozen=True)
class SourceOptions:
    """The `dataset` and its `path`; `zipped`: in zip archives, which `cache` reads into memory first; `classes`: how
    many there must be, 0 for any number; `validate`: training needs validation data; `labelled`: with classes."""

    dataset: str
    path: str
    zipped: bool = False
    cache: bool = False
    classes: int = 0
    validate: bool = True
    labelled: bool = True

    @staticmethod
    def from_config(cfg: CfgNode) -> "SourceOptions":
        return SourceOptions(
            dataset=cfg.DATA.DATASET,
            path=cfg.DATA.DATA_PATH,
            zipped=cfg.DATA.ZIP_MODE,
            cache=cfg.DATA.CACHE_MODE != "no",
            classes=cfg.MODEL.NUM_CLASSES,
            validate=cfg.TEST.VALIDATE,
            labelled=cfg.TASK != "simmim",
        )


@dataclass(frozen=True)
class Sources:
    """The training split, and the validation split if there is one, with the same class map."""

    train: Source
    val: Source | None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def identity(self) -> tuple[tuple[str, ...], tuple[int, ...], str]:
        """Returns class names, training samples of each class, and the digest of their names and labels."""
        return self.class_names, tuple(self.train.counts()), self.train.fingerprint()

    def describe(self) -> list[str]:
        """Returns log lines: how many samples and classes, and samples from all over the training split."""
        val = f" and {len(self.val):,} validation" if self.val is not None else ""
        shown = [i * len(self.train) // SHOWN for i in range(min(SHOWN, len(self.train)))]
        names = self.class_names
        labels = [f" ({names[self.train.label(i)]})" if names else "" for i in shown]
        samples = [Path(self.train.name(i)).name + label for i, label in zip(shown, labels, strict=True)]
        return [
            f"data: {len(self.train):,} training{val} samples, {f'{len(names):,} classes' if names else 'unlabelled'}",
            f"samples: {', '.join(samples)}",
        ]


def open_sources(options: SourceOptions, world: World) -> Sources:
    """Opens the training split, whose classes are the class map, and the validation split.

    A class that is merely absent from val shifts nothing.
    Raises: DataError: what is missing, and where.
    """
    splits = ("train", "val") if options.validate and options.labelled else ("train",)
    with world.local_main_first():  # it builds the index that the others then find
        store = _find_store(options, splits)
        validate = options.validate and (options.labelled or store.has("val"))
        _fill_cache(options, ("train", "val") if validate else ("train",), world)
        train = store.open("train", None, options.classes)
        val = store.open("val", train.class_names, options.classes) if validate else None
    _check_count(train, options)
    if val is not None:
        _check_presence(val, options)
    sources = Sources(train, val)
    _check_ranks(world, {"training": train, "validation": val})
    log_lines(sources.describe())
    return sources


def open_val(
    options: SourceOptions,
    world: World,
    class_names: Sequence[str] | None = None,
    likely_names: Sequence[str] | None = None,
) -> Source:
    """Opens the validation split alone, to evaluate weights.

    The class map is `class_names` (a checkpoint's), else `likely_names` (ImageNet's synsets) if all classes of val are
    among them, else train's if there is a train split, else val's own. MODEL.NUM_CLASSES may exceed the classes of the
    data, which are then the first ones of the model.

    Raises: DataError: what is missing, and where.
    """
    with world.local_main_first():
        store = _find_store(options, ("val",))
        _fill_cache(options, ("val",), world)
        names = _known_names(store, options, class_names, likely_names) if options.labelled else None
        val = store.open("val", names, options.classes)
    _check_count(val, options)
    _check_ranks(world, {"validation": val})
    classes = f"{len(val.class_names):,} classes" if val.class_names else "unlabelled"
    log.info("data: %s validation samples, %s", f"{len(val):,}", classes)
    return val


def _known_names(
    store: Store, options: SourceOptions, class_names: Sequence[str] | None, likely_names: Sequence[str] | None
) -> Sequence[str] | None:
    if class_names is not None:
        log.info("class map: the checkpoint's, %d classes", len(class_names))
        return class_names
    own = store.class_names("val")
    fits = options.classes in (0, len(likely_names or ()))
    if likely_names and fits and set(own) <= set(likely_names):
        few = len(own) < len(likely_names)
        other = f" (MODEL.NUM_CLASSES {len(own)}: as labels 0 to {len(own) - 1})" if few else ""
        why = f"the {len(own)} classes of val are its synsets{other}" if own else "val has no folders of classes"
        log.info("class map: ImageNet-1K, since %s", why)
        return likely_names
    names: Sequence[str] = own
    split = "val"
    if store.has("train"):
        opened = store.open("train", None, options.classes) if options.classes else None
        names, split = store.class_names("train") if opened is None else opened.class_names, "train"
    log.info("class map: the classes of %s, in the order of their names", split)
    missing = options.classes - len(names)
    return [*names, *(f"class {len(names) + i}" for i in range(missing))] if names else None


def _check_count(source: Source, options: SourceOptions) -> None:
    found = len(source.class_names)
    if options.classes and found != options.classes:
        where = options.path or options.dataset
        raise DataError(f"{where} has {found} classes, not {options.classes}: MODEL.NUM_CLASSES: set it to 0")


def _check_presence(val: Source, options: SourceOptions) -> None:
    """Warns of classes that have no validation samples. Raises: DataError if there is no sample at all."""
    if not len(val):
        raise DataError(
            f"no validation samples of the classes of train: {options.path}: TEST.VALIDATE: set it to false"
        )
    absent = [name for name, count in zip(val.class_names, val.counts(), strict=True) if not count]
    if absent:
        log.warning("%d classes have no validation samples: %s", len(absent), listing(absent))


def _check_ranks(world: World, splits: Mapping[str, Source | None]) -> None:
    """Raises: DistributedError if the ranks see different samples: a disk of a machine differs from the others."""
    if world.size == 1:
        return
    seen: dict[str, object] = {}
    for split, source in splits.items():
        if source is not None:
            seen[f"the number of {split} samples"] = len(source)
            seen[f"the number of classes for {split}"] = len(source.class_names)
            seen[f"the digest of names and labels of the {split} samples"] = source.fingerprint()[:16]
    world.check_equal(seen, "DATA.DATA_PATH: copy the same data to every machine")


def _fill_cache(options: SourceOptions, splits: Sequence[str], world: World) -> None:
    for split in splits if options.zipped and options.cache else ():
        archive = Path(options.path, f"{split}.zip")
        if archive.is_file():
            fill_page_cache(archive, world.local_rank, world.local_size)


def _find_store(options: SourceOptions, splits: Sequence[str]) -> Store:
    dataset, path = options.dataset, options.path
    if dataset.startswith("timm:"):
        return ReaderStore(dataset.removeprefix("timm:"), path)
    if dataset == "digits":
        return FolderStore(write_digits(_digits_folder(path)))
    if dataset not in STORES:
        known = ["digits", "timm:NAME", *STORES]
        raise DataError(
            f"unknown data set {dataset!r}: DATA.DATASET: {did_you_mean(dataset, known)} (imagenet is any image folder)"
        )
    if dataset == "synthetic":
        return SyntheticStore(path)
    if dataset == "imagenet" and path and not options.labelled and not options.zipped:
        return UnlabelledStore(Path(path))
    if not path:
        raise DataError(
            "no data: DATA.DATA_PATH: pass --data-path FOLDER with train/ and val/"
            " (or try: bash scripts/quickstart.sh, which needs none)"
        )
    store = ZipStore(Path(path)) if options.zipped else STORES[dataset](Path(path))
    if dataset == "imagenet" and not options.zipped:
        for split in splits:
            if not store.has(split):
                _check_folder(Path(path), split)
                optional = " (or set TEST.VALIDATE false)" if splits == ("train", "val") and split == "val" else ""
                raise DataError(f"no folder {split}/ in {path}: --data-path: it must contain train/ and val/{optional}")
    return store


def _digits_folder(path: str) -> Path:
    """Raises: DataError for a folder that neither exists nor is named digits: it was mistyped, or another data set."""
    folder = Path(path or "datasets/digits")
    if not folder.exists() and folder.name != "digits":
        raise DataError(f"no such folder: {folder}: --data-path: leave it out to have the digits in datasets/digits")
    return folder


def _check_folder(path: Path, split: str) -> None:
    """Raises: DataError if the folder that is meant is near: its parent, or a split under another name."""
    if not path.is_dir():
        raise DataError(f"no such folder: {path}: --data-path: name one that contains train/ and val/")
    if path.name in ("train", "val") and (path.parent / split).is_dir():
        raise DataError(f"{path} is one split: --data-path: name the folder that contains it, {path.parent}")
    other = next((name for name in _OTHER_NAMES[split] if (path / name).is_dir()), None)
    if other:
        raise DataError(f"no folder {split}/ in {path}, but {other}/: --data-path: rename it, or link {split} to it")


def chosen_classes(choice: str, source: Source) -> list[int]:
    """Returns the labels that TEST.CLASSES selects: none for "", those with samples for "present", else those in a file
    with one name per line.

    Raises: DataError for a file that cannot be read, or a name that is not a class.
    """
    if not choice:
        return []
    if choice == "present":
        return [label for label, count in enumerate(source.counts()) if count]
    try:
        names = [line.strip() for line in Path(choice).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not UTF-8"
        raise DataError(f"cannot read the class names ({reason}): {choice}: TEST.CLASSES takes a file") from e
    labels = {name: label for label, name in enumerate(source.class_names)}
    unknown = [name for name in names if name not in labels]
    if unknown or not names:
        raise DataError(f"no such classes: {choice}: {listing(unknown) or 'the file is empty'}: one name per line")
    chosen = {labels[name] for name in names}
    if any(count and label not in chosen for label, count in enumerate(source.counts())):
        raise DataError(f"val/ has classes beyond those selected: {choice}: remove their folders, or add their names")
    return sorted(chosen)
