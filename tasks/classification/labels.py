"""Class labels: the splits of a labelled dataset under one class map, and the class map of a checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo
from yacs.config import CfgNode

from data.sources.base import LabelledSource, Store, opening, read_file
from data.sources.open import SourceOptions, check_ranks, fill_cache, find_store, some_samples
from data.tools.division import SPLIT_FILE, DividedStore, DivisionOptions, divided, format_splits, read_splits
from models.weights.class_maps import CLASSES_1K
from tasks.named_classes import NamedClasses
from utils.distributed.world import World
from utils.errors import DataError, count, listing
from utils.runs.folder import path_of_run
from utils.terminal import log_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassInfo(NamedClasses):
    """`counts`: training samples of each class; `splits`: of a dataset that was divided,
    the split of each file."""

    counts: tuple[int, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(train: LabelledSource, splits: Mapping[str, str] | None = None, upright: bool = False) -> "ClassInfo":
        """Returns the classes of a training split."""
        names, counts = tuple(train.class_names), tuple(train.counts())
        return ClassInfo(train.fingerprint(), names, counts, splits or {}, upright=upright)

    def as_dict(self) -> dict[str, Any]:
        held_out = [name for name, split in self.splits.items() if split == "val"]
        own = {"data_counts": list(self.counts), **({"held_out": held_out} if held_out else {})}
        return {**own, **super().as_dict()}

    def files(self) -> dict[str, str]:
        return {SPLIT_FILE: format_splits(self.splits)} if self.splits else {}

    def difference(self, saved: Mapping[str, Any]) -> str:
        for name, before, now in zip(self.class_names, saved.get("data_counts", ()), self.counts, strict=False):
            if before != now:
                return f"class {name} had {before} files, now {now}"
        return super().difference(saved)


def class_names_of(contents: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Returns the class names stored in a file, else ImageNet-1K's synsets for 1000 classes, else "class 0", ..."""
    names = contents.get("class_names")
    if isinstance(names, list) and len(names) == classes:
        return tuple(names)
    if classes == CLASSES_1K:
        return tuple(ImageNetInfo("imagenet-1k").label_names())
    return tuple(f"class {i}" for i in range(classes))


@dataclass(frozen=True)
class Opened:
    """The splits of a dataset; `splits`: of one that was divided, the split of each file."""

    train: LabelledSource
    val: LabelledSource | None
    splits: Mapping[str, str]


def open_train(options: SourceOptions, world: World, division: DivisionOptions | None = None) -> Opened:
    """Opens the training split, which defines the class map, and the validation split unless it is disabled.

    Classes absent from val do not shift labels.
    Args: division: of a dataset without splits.
    Raises: DataError for a missing or mismatched split.
    """
    splits = ("train", "val") if options.validate else ("train",)
    with world.local_main_first(), opening(options.path):  # one rank builds the index, the others read it
        division = (division or DivisionOptions()) if options.validate else DivisionOptions(fraction=0)
        store = divided(find_store(options, splits), division)
        fill_cache(options, splits, world)
        train = store.open("train", None, options.classes)
        val = store.open("val", train.class_names, options.classes) if options.validate else None
    _check_count(train, options)
    if val is not None:
        _check_presence(val, options)
    check_ranks(world, {"training": train, "validation": val})
    log_lines(_describe(train, val))
    if len(train.class_names) == 1:
        log.warning("one class only, %s: there is nothing to distinguish", train.class_names[0])
    return Opened(train, val, store.splits if isinstance(store, DividedStore) else {})


def division_of(cfg: CfgNode, world: World) -> DivisionOptions:
    """Returns how a dataset without splits is divided, and how it was when the run began: only the main rank's machine
    is sure to have the output folder. A collective operation."""
    data = cfg.DATA
    return DivisionOptions(
        fraction=data.SPLIT,
        seed=data.SPLIT_SEED,
        group_by=data.GROUP_BY,
        duplicates=data.NEAR_DUPLICATES == "together",
        known=world.main_only(lambda: read_splits(path_of_run(cfg) / SPLIT_FILE)),
    )


def _describe(train: LabelledSource, val: LabelledSource | None) -> list[str]:
    """Returns log lines: counts of samples and classes, and some samples with their classes."""
    validation = f" and {len(val):,} validation" if val is not None else ""
    names = train.class_names
    words = {i: ", ".join(names[label] for label in train.labels_of(i)) for i in some_samples(train)}
    samples = [f"{Path(train.name(i)).name} ({own})" for i, own in words.items()]
    return [
        f"data: {len(train):,} training{validation} samples, {count(len(names), 'class', 'classes')}",
        f"samples: {', '.join(samples)}",
    ]


def open_val(
    options: SourceOptions,
    world: World,
    class_names: Sequence[str] | None = None,
    likely_names: Sequence[str] | None = None,
    known: Mapping[str, str] | None = None,
) -> LabelledSource:
    """Opens the validation split alone, to evaluate weights.

    The class map is `class_names` (from a checkpoint), else `likely_names` (ImageNet's synsets) if they include all
    classes of val, else the classes of train, else those of val. MODEL.NUM_CLASSES may exceed the classes of the data,
    which are then the first ones of the model. `known`: the split of each file, if the dataset was divided in training.

    Raises: DataError for a missing or mismatched split.
    """
    with world.local_main_first(), opening(options.path):
        store = divided(find_store(options, ("val",)), DivisionOptions(known=known, evaluates=True))
        fill_cache(options, ("val",), world)
        val = store.open("val", _class_map(store, options, class_names, likely_names), options.classes)
    _check_count(val, options)
    check_ranks(world, {"validation": val})
    log.info("data: %s, %s", count(len(val), "validation sample"), count(len(val.class_names), "class", "classes"))
    return val


def _class_map(
    store: Store, options: SourceOptions, class_names: Sequence[str] | None, likely_names: Sequence[str] | None
) -> Sequence[str] | None:
    if class_names is not None:
        log.info("class map: the checkpoint's, %s", count(len(class_names), "class", "classes"))
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


def _check_count(source: LabelledSource, options: SourceOptions) -> None:
    found = len(source.class_names)
    if options.classes and found != options.classes:
        where = options.path or options.dataset
        raise DataError("MODEL.NUM_CLASSES", f"{where} has {found} classes, not {options.classes}", "set it to 0")


def _check_presence(val: LabelledSource, options: SourceOptions) -> None:
    """Warns of classes without validation samples. Raises: DataError if there are no samples at all."""
    if not len(val):
        raise DataError(options.path, "no validation samples of the training classes", "set TEST.VALIDATE to false")
    absent = [name for name, count in zip(val.class_names, val.counts(), strict=True) if not count]
    if absent:
        log.warning("%d classes have no validation samples: %s", len(absent), listing(absent))


def chosen_classes(choice: str, source: LabelledSource) -> list[int]:
    """Returns the labels that TEST.CLASSES selects: "" none; "present" those with samples; else the names in a file.

    Raises: DataError for an unreadable file or an unknown class.
    """
    if not choice:
        return []
    if choice == "present":
        return [label for label, count in enumerate(source.counts()) if count]
    try:
        lines = read_file(choice).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not UTF-8"
        raise DataError(choice, f"cannot read the class names ({reason})", "set TEST.CLASSES to a text file") from e
    names = [line.strip() for line in lines if line.strip()]
    labels = {name: label for label, name in enumerate(source.class_names)}
    unknown = [name for name in names if name not in labels]
    if unknown or not names:
        problem = f"unknown classes: {listing(unknown)}" if unknown else "the file is empty"
        raise DataError(choice, problem, "list one class of the data per line")
    chosen = {labels[name] for name in names}
    if any(count and label not in chosen for label, count in enumerate(source.counts())):
        raise DataError(choice, "val/ has images of other classes", "remove their folders, or add their names")
    return sorted(chosen)
