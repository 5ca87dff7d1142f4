"""Opens the store of a dataset, in any storage format, and checks its splits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from yacs.config import CfgNode

from data.sources.archive import fill_page_cache
from data.sources.base import Pool, Source, Store
from data.sources.digits import write_digits
from data.sources.folders import FolderPool, FolderStore, has_class_folders
from data.sources.huggingface import ReaderStore
from data.sources.lists import ListStore
from data.sources.synthetic import SyntheticStore
from data.sources.table import Columns, Table, is_table
from data.sources.tar import TarStore
from data.sources.zip import ZipStore
from utils.distributed.world import World
from utils.errors import DataError, did_you_mean

_OTHER_NAMES = {"train": ("training", "Train", "trn"), "val": ("validation", "valid", "Val", "test", "dev")}
SHOWN = 3  # samples listed in the log at the start

STORES: dict[str, Callable[[Path], Store]] = {
    "imagenet": FolderStore,
    "imagenet22K": ListStore,
    "list": ListStore,
    "tar": TarStore,
    "synthetic": SyntheticStore,
}


@dataclass(frozen=True)
class SourceOptions:
    """The `dataset` and its `path`; `zipped`: in zip archives, which `cache` reads into the page cache; `classes`:
    required number, 0 for any; `validate`: whether training needs validation data; `columns`: of a table, or of a
    Hugging Face dataset."""

    dataset: str
    path: str
    zipped: bool = False
    cache: bool = False
    classes: int = 0
    validate: bool = True
    columns: Columns = field(default_factory=Columns)

    @staticmethod
    def from_config(cfg: CfgNode, several: bool = False) -> "SourceOptions":
        """Args: several: images have any number of labels."""
        data = cfg.DATA
        kind, _, group = data.GROUP_BY.partition(":")
        return SourceOptions(
            dataset=cfg.DATA.DATASET,
            path=cfg.DATA.DATA_PATH,
            zipped=cfg.DATA.ZIP_MODE,
            cache=cfg.DATA.CACHE_MODE != "no",
            classes=cfg.MODEL.NUM_CLASSES,
            validate=cfg.TEST.VALIDATE,
            columns=Columns(
                *(data.IMAGE_COLUMN, data.LABEL_COLUMN, data.SPLIT_COLUMN, data.WEIGHT_COLUMN),
                group=group if kind == "column" else "",
                label_separator=data.LABEL_SEPARATOR,
                several=several,
            ),
        )


def check_ranks(world: World, splits: Mapping[str, Source | None]) -> None:
    """Checks that all ranks see the same samples. Raises: DistributedError if the disk of a machine differs."""
    if world.size == 1:
        return
    seen = [
        f"{len(source)} {split} samples with digest {source.fingerprint()[:16]}"
        for split, source in splits.items()
        if source is not None
    ]
    world.check_equal({"DATA.DATA_PATH": ", ".join(seen)}, "copy the same data to every machine")


def some_samples(source: Source, count: int = SHOWN) -> list[int]:
    """Returns indices of samples spread over a split."""
    return [i * len(source) // count for i in range(min(count, len(source)))]


def fill_cache(options: SourceOptions, splits: Sequence[str], world: World) -> None:
    for split in splits if options.zipped and options.cache else ():
        archive = Path(options.path, f"{split}.zip")
        if archive.is_file():
            fill_page_cache(archive, world.local_rank, world.local_size)


def find_store(options: SourceOptions, splits: Sequence[str]) -> Store | Pool:
    """Returns the store of a labelled dataset with all `splits`, or a pool if it has no splits. Raises: DataError."""
    dataset, path = options.dataset, options.path
    if dataset.startswith("timm:"):
        return ReaderStore(dataset.removeprefix("timm:"), path, options.columns.named("image", "label"))
    if dataset == "digits":
        folder = Path(path or "datasets/digits")
        if not folder.exists() and folder.name != "digits":  # a typo, or another dataset
            raise DataError("--data-path", f"no such folder: {folder}", "omit it to use datasets/digits")
        return FolderStore(write_digits(folder))
    if dataset not in STORES:
        remedy = f"{did_you_mean(dataset, ['digits', 'timm:NAME', *STORES])}; imagenet is any image folder"
        raise DataError("DATA.DATASET", f"unknown dataset {dataset!r}", remedy)
    if dataset == "synthetic":
        return SyntheticStore(path)
    if not path:
        remedy = "pass --data-path FOLDER with train/ and val/, or run scripts/quickstart.sh, which needs no data"
        raise DataError("DATA.DATA_PATH", "not set", remedy)
    if is_table(Path(path)) and not Path(path).is_dir():
        return Table(Path(path), options.columns).store()
    if options.columns.several:
        raise DataError("DATA.DATA_PATH", f"{path} has one label per image", "pass a .csv or .tsv file with labels")
    store = ZipStore(Path(path)) if options.zipped else STORES[dataset](Path(path))
    if dataset == "imagenet" and not options.zipped:
        if has_no_splits(Path(path)):
            return FolderPool(Path(path))
        for split in splits:
            if not store.has(split):
                _check_folder(Path(path), split)
                optional = ", or set TEST.VALIDATE to false" if splits == ("train", "val") and split == "val" else ""
                remedy = f"choose a folder that contains train/ and val/, or a folder of images per class{optional}"
                raise DataError("--data-path", f"no folder {split}/ in {path}", remedy)
    return store


def has_no_splits(path: Path) -> bool:
    """Returns whether a folder contains only class folders, and is not one of several splits itself."""
    named = [*_OTHER_NAMES, *chain.from_iterable(_OTHER_NAMES.values())]
    sibling = path.name in _OTHER_NAMES and all((path.parent / split).is_dir() for split in _OTHER_NAMES)
    return not sibling and not any((path / name).is_dir() for name in named) and has_class_folders(path)


def _check_folder(path: Path, split: str) -> None:
    """Raises: DataError for a missing folder, a single split, or a split under a different name."""
    if not path.is_dir():
        raise DataError("--data-path", f"no such folder: {path}", "choose one that contains train/ and val/")
    if path.name in ("train", "val") and (path.parent / split).is_dir():
        raise DataError("--data-path", f"{path} is a single split", f"pass its parent folder, {path.parent}")
    other = next((name for name in _OTHER_NAMES[split] if (path / name).is_dir()), None)
    if other:
        problem = f"no folder {split}/ in {path}, but {other}/"
        raise DataError("--data-path", problem, f"rename it, or create a link named {split}")
