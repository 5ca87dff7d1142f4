"""Images without labels, for pre-training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources.base import Source, opening
from data.sources.open import SourceOptions, check_ranks, fill_cache, find_store, some_samples
from data.sources.unlabelled import UnlabelledStore
from tasks.base import TaskData
from utils.distributed.world import World
from utils.runs.provenance import DataInfo
from utils.terminal import log_lines


@dataclass(frozen=True)
class ImageInfo(DataInfo):
    """`classes` of a labelled dataset: a head for them is initialised and discarded, so that a seed gives the same
    weights in every version."""

    classes: int = 0


def open_images(options: SourceOptions, splits: Sequence[str], world: World) -> TaskData:
    """Opens any folder of images, or a labelled dataset in another storage format, ignoring labels; val is optional.

    Raises: DataError.
    """
    any_folder = options.dataset == "imagenet" and options.path and not options.zipped
    first = splits[0]
    with world.local_main_first(), opening(options.path):  # one rank builds the index, the others read it
        store: Any = UnlabelledStore(Path(options.path)) if any_folder else find_store(options, (first,))
        wanted = [split for split in splits if split == first or (options.validate and store.has(split))]
        fill_cache(options, wanted, world)
        opened: dict[str, Any] = {split: store.open(split, None, options.classes) for split in wanted}
    train: Source | None = opened.get("train")
    val: Source | None = opened.get("val")
    check_ranks(world, {"training": train, "validation": val})
    counts = " and ".join(f"{len(opened[s]):,} {name}" for s, name in _NAMES.items() if s in opened)
    lines = [f"data: {counts} samples, unlabelled"]
    if train is not None:
        lines.append(f"samples: {', '.join(Path(train.name(i)).name for i in some_samples(train))}")
    log_lines(lines)
    classes = len(next(iter(opened.values())).class_names)
    return TaskData(train, val, ImageInfo("" if train is None else train.fingerprint(), classes))


def folders_of(source: Source) -> list[str]:
    """Returns the folders of some of the images."""
    return sorted({Path(source.name(i)).parent.name for i in some_samples(source)})


_NAMES = {"train": "training", "val": "validation"}
