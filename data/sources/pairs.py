"""Images with label maps, in the layouts of ADE20K, Cityscapes and Pascal VOC and in plain folders."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data.sources.base import Record, read_file, with_retries
from data.sources.folders import images_below
from utils.errors import DataError, listing

log = logging.getLogger(__name__)

# names of the folder or list of a split
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


class PairLayout(NamedTuple):
    """Where a dataset keeps its images and label maps.

    `images`, `labels`: names of the folders, the first that exists counts; `endings`: of the names of an image and its
    label map, which are equal before; "": any extension. `inside`: folders that may contain the dataset.
    """

    name: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    endings: tuple[str, str] = ("", "")
    inside: tuple[str, ...] = ()


LAYOUTS = (
    PairLayout("cityscapes", ("leftImg8bit",), ("gtFine",), ("_leftImg8bit.png", "_gtFine_labelTrainIds.png")),
    PairLayout("cityscapes_ids", ("leftImg8bit",), ("gtFine",), ("_leftImg8bit.png", "_gtFine_labelIds.png")),
    PairLayout("voc", ("JPEGImages",), ("SegmentationClass",), inside=("VOCdevkit/VOC2012", "VOC2012")),
    PairLayout("ade20k", ("images",), ("annotations",), inside=("ADEChallengeData2016",)),
    PairLayout("folders", ("images", "img_dir"), ("labels", "masks", "annotations", "ann_dir")),
)
# lists of a split's names, without folder and extension
LISTS = ("{}.txt", "splits/{}.txt", "ImageSets/Segmentation/{}.txt")
_REMEDY = "use images/train, images/val, labels/train and labels/val, with equal names"


class PairSource:
    """Images and their label maps by path; the target of a sample is the encoded label map."""

    def __init__(self, root: Path, pairs: Sequence[tuple[str, str]]):
        self.root, self._pairs = root, list(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> Record:
        image = self._read(self._pairs[i][0])
        return Record(image, self.labels(i), self.name(i))

    def labels(self, i: int) -> bytes:
        """Returns the encoded label map of a sample. Raises: DataError."""
        return self._read(self._pairs[i][1])

    def _read(self, name: str) -> bytes:
        path = self.root / name
        return with_retries(lambda: read_file(path), lambda: str(path))

    def name(self, i: int) -> str:
        return str(self.root / self._pairs[i][0])

    def label_name(self, i: int) -> str:
        """Returns the location of a label map, for messages."""
        return str(self.root / self._pairs[i][1])

    def fingerprint(self) -> str:
        """Returns a digest of the names; the pixels of label maps are not part of it."""
        lines = "\n".join("\t".join(pair) for pair in self._pairs)
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


class PairStore:
    """A dataset of images with label maps.

    Args: root: its folder. Attributes: root: of the layout; layout: its name; labels: folder of the label maps.
    Raises: DataError if the folder has no known layout.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise DataError(str(root), "no such folder", "set --data-path to a folder of images and label maps")
        for layout, folder in _candidates(root):
            found = [_first(folder, names) for names in (layout.images, layout.labels)]
            if all(found) and _fits(layout, folder / str(found[1])):
                self.root, self.layout, self._layout = folder, layout.name, layout
                self._images, self.labels = (str(each) for each in found)
                return
        raise DataError(str(root), "contains no folders of images and label maps", _REMEDY)

    def has(self, split: str) -> bool:
        return self._folder(split) is not None or self._list(split) is not None

    def open(self, split: str) -> PairSource:
        """Opens "train" or "val". Raises: DataError for a missing split, or an image without a label map."""
        folder, chosen = self._folder(split), self._list(split)
        if folder is None and chosen is None:
            raise DataError(str(self.root), f"has no {split} images: no folder, no {split}.txt", _REMEDY)
        below = "" if folder is None else f"/{folder}"
        images = self._by_stem(self._images + below, self._layout.endings[0])
        labels = self._by_stem(self.labels + below, self._layout.endings[1])
        if folder is None:
            assert chosen is not None
            images = {stem: images[stem] for stem in _listed(chosen, images)}
        missing = [images[stem] for stem in images if stem not in labels]
        if missing:
            problem = f"{len(missing)} of {len(images)} images have no label map below {self.labels}{below}"
            raise DataError(str(self.root), f"{problem}: {listing(missing, 3)}", "name label maps like their images")
        unused = len(labels.keys() - images.keys()) if folder is not None else 0
        if unused:
            log.warning("left out: %d label maps without an image below %s", unused, self.root / self.labels)
        if not images:
            raise DataError(str(self.root / self._images), f"no {split} images", _REMEDY)
        return PairSource(self.root, [(images[stem], labels[stem]) for stem in sorted(images)])

    def _folder(self, split: str) -> str | None:
        return _first(self.root / self._images, SPLITS[split])

    def _list(self, split: str) -> Path | None:
        names = (form.format(name) for name in SPLITS[split] for form in LISTS)
        return next((self.root / name for name in names if (self.root / name).is_file()), None)

    def _by_stem(self, folder: str, ending: str) -> dict[str, str]:
        """Returns the files below a folder: paths relative to the root, by name without ending."""
        stems: dict[str, str] = {}
        for path in sorted(images_below(self.root / folder).images):
            name = os.path.relpath(path, self.root / folder)
            if not name.endswith(ending):
                continue
            stem = name[: -len(ending)] if ending else os.path.splitext(name)[0]
            other = stems.setdefault(stem, f"{folder}/{name}")
            if other != f"{folder}/{name}":
                raise DataError(str(self.root / other), f"{name} has the same name", "keep one of them")
        return stems


def _candidates(root: Path) -> Iterator[tuple[PairLayout, Path]]:
    for layout in LAYOUTS:
        yield from ((layout, root / name) for name in ("", *layout.inside))


def _first(folder: Path, names: Sequence[str]) -> str | None:
    return next((name for name in names if (folder / name).is_dir()), None)


def _fits(layout: PairLayout, labels: Path) -> bool:
    """Distinguishes layouts with the same folders by the names of the label maps, or of the splits."""
    if layout.name == "ade20k":
        return (labels / "training").is_dir() or (labels / "validation").is_dir()
    ending = layout.endings[1]
    return not ending or next(labels.glob(f"*/*/*{ending}"), None) is not None


def _listed(path: Path, known: dict[str, str]) -> list[str]:
    """Returns the names of a list. Raises: DataError for a name without an image."""
    lines = [line.split()[0] for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    stems = [line if line in known else os.path.splitext(line)[0] for line in lines]
    unknown = [stem for stem in stems if stem not in known]
    if unknown:
        raise DataError(str(path), f"lists images that do not exist: {listing(unknown, 3)}", "correct the list")
    return stems
