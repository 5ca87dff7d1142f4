"""Finds the store of a dataset, in any form of storage, and checks its splits."""

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
from data.sources.zip import ZipStore
from utils.distributed.world import World
from utils.errors import DataError, did_you_mean

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
    many there must be, 0 for any number; `validate`: training needs validation data."""

    dataset: str
    path: str
    zipped: bool = False
    cache: bool = False
    classes: int = 0
    validate: bool = True

    @staticmethod
    def from_config(cfg: CfgNode) -> "SourceOptions":
        return SourceOptions(
            dataset=cfg.DATA.DATASET,
            path=cfg.DATA.DATA_PATH,
            zipped=cfg.DATA.ZIP_MODE,
            cache=cfg.DATA.CACHE_MODE != "no",
            classes=cfg.MODEL.NUM_CLASSES,
            validate=cfg.TEST.VALIDATE,
        )


def check_ranks(world: World, splits: Mapping[str, Source | None]) -> None:
    """Checks that all ranks see the same samples. Raises: DistributedError if the disk of a machine differs."""
    if world.size == 1:
        return
    seen: dict[str, object] = {}
    for split, source in splits.items():
        if source is not None:
            seen[f"the number of {split} samples"] = len(source)
            seen[f"the digest of names and targets of the {split} samples"] = source.fingerprint()[:16]
    world.check_equal(seen, "DATA.DATA_PATH: copy the same data to every machine")


def some_samples(source: Source, count: int = SHOWN) -> list[int]:
    """Returns indices of samples spread over a split."""
    return [i * len(source) // count for i in range(min(count, len(source)))]


def fill_cache(options: SourceOptions, splits: Sequence[str], world: World) -> None:
    for split in splits if options.zipped and options.cache else ():
        archive = Path(options.path, f"{split}.zip")
        if archive.is_file():
            fill_page_cache(archive, world.local_rank, world.local_size)


def find_store(options: SourceOptions, splits: Sequence[str]) -> Store:
    """Returns the store of a labelled dataset with all `splits`. Raises: DataError: what is missing, and where."""
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
