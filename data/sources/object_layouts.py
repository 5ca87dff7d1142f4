"""The layouts of datasets with annotated objects: COCO, Pascal VOC and YOLO."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import yaml
from PIL import Image

from data.sources.base import read_file
from data.sources.box_files import ImageObjects, class_names_of_voc, parse_voc, parse_yolo
from data.sources.coco import Annotations, read_coco
from data.sources.folders import images_below
from data.sources.index import Stamp, stamp
from data.sources.instances import AnnotatedImage
from data.sources.names import is_image
from data.sources.pairs import SPLITS
from utils.errors import DataError, count, did_you_mean, listing

CLASS_FILES = ("classes.txt", "class_names.txt", "labels.txt", "obj.names")
# files of COCO annotations by the name of a split, and folders of its images
COCO_FILES = (
    *("annotations/instances_{}.json", "annotations/instances_{}20*.json", "annotations/{}.json"),
    *("{}/_annotations.coco.json", "{}.json", "annotations/*_{}.json"),
)
COCO_FOLDERS = ("{}", "images/{}", "{}/images", "images", "")
VOC_INSIDE = ("", "BCCD", "VOC2012", "VOC2007", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007")


class Annotated(NamedTuple):
    """A split as read. `omitted`: lines on the annotations that are not used."""

    images: Sequence[AnnotatedImage]
    class_names: Sequence[str]
    category_ids: Sequence[int]
    omitted: Sequence[str]


class Layout(Protocol):
    """A dataset in one format."""

    name: str

    def has(self, split: str) -> bool: ...
    def place(self, split: str) -> tuple[Path, Path]:
        """Returns the folder of the images, and the file or folder of the annotations."""
        ...

    def read(self, split: str, class_names: Sequence[str] | None) -> tuple[Annotated, list[Stamp]]:
        """Reads the annotations. Args: class_names: None for the split's own. Raises: DataError."""
        ...


def layouts(root: Path) -> Iterator[Layout]:
    yield _Coco(root)
    for inside in VOC_INSIDE:
        yield _Voc(root / inside)
    yield _Yolo(root)


@dataclass(frozen=True)
class _Coco:
    root: Path
    name = "coco"

    def __str__(self) -> str:
        return str(self.root)

    def has(self, split: str) -> bool:
        return self._file(split) is not None

    def _file(self, split: str) -> Path | None:
        forms = (form.format(name) for name in SPLITS[split] for form in COCO_FILES)
        return next((path for form in forms for path in sorted(self.root.glob(form))), None)

    def place(self, split: str) -> tuple[Path, Path]:
        file = self._file(split)
        assert file is not None
        year = file.stem.rpartition("_")[2]  # instances_train2017 -> train2017
        names = [form.format(name) for name in (year, *SPLITS[split]) for form in COCO_FOLDERS[:3]]
        folders = [self.root / name for name in names] + [file.parent, *(self.root / name for name in COCO_FOLDERS[3:])]
        images = next((folder for folder in folders if folder.is_dir() and _has_image(folder)), self.root)
        return images, file

    def read(self, split: str, class_names: Sequence[str] | None) -> tuple[Annotated, list[Stamp]]:
        folder, file = self.place(split)
        stamps = [stamp(file)]
        read = read_coco(file)
        outside = next((i.file for i in read.images if os.path.isabs(i.file) or ".." in Path(i.file).parts), None)
        if outside is not None:
            raise DataError(str(file), f"names an image outside of the dataset: {outside}", "use relative names")
        missing = [image.file for image in read.images if not (folder / image.file).is_file()]
        if missing:
            problem = f"{len(missing)} of {len(read.images)} images are not in {folder}: {listing(missing, 3)}"
            raise DataError(str(file), problem, "restore them, or remove their entries")
        if class_names is not None and list(class_names) != list(read.class_names):
            read = _relabelled(read, class_names)
        return Annotated(read.images, read.class_names, read.category_ids, read.summary()), stamps


@dataclass(frozen=True)
class _Voc:
    root: Path
    name = "voc"

    def __str__(self) -> str:
        return str(self.root)

    def has(self, split: str) -> bool:
        return (self.root / "Annotations").is_dir() and self._list(split) is not None

    def _list(self, split: str) -> Path | None:
        names = (*SPLITS[split], *(("trainval",) if split == "train" else ()))
        paths = (self.root / form.format(name) for name in names for form in ("ImageSets/Main/{}.txt", "{}.txt"))
        return next((path for path in paths if path.is_file()), None)

    def place(self, split: str) -> tuple[Path, Path]:
        return self.root / "JPEGImages", self.root / "Annotations"

    def read(self, split: str, class_names: Sequence[str] | None) -> tuple[Annotated, list[Stamp]]:
        folder, notes = self.place(split)
        chosen = self._list(split)
        assert chosen is not None
        stamps, texts = [*_class_stamps(self.root), stamp(chosen)], dict[str, bytes]()
        stems = [line.split()[0] for line in read_file(chosen).decode("utf-8-sig").splitlines() if line.strip()]
        for stem in stems:
            path = notes / f"{stem}.xml"
            if not path.is_file():
                raise DataError(str(chosen), f"lists {stem}, which has no {path}", "correct the list")
            stamps.append(stamp(path))
            texts[stem] = read_file(path)
        names = class_names or _listed_classes(self.root)
        names = names or class_names_of_voc((text, str(notes / f"{stem}.xml")) for stem, text in texts.items())
        labels = {name: label for label, name in enumerate(names)}
        files = _by_stem(folder)
        found = [
            (_existing(files, stem, folder), parse_voc(text, labels, str(notes / f"{stem}.xml")))
            for stem, text in texts.items()
        ]
        return _joined(found, names), stamps


@dataclass(frozen=True)
class _Yolo:
    root: Path
    name = "yolo"

    def __str__(self) -> str:
        return str(self.root)

    def has(self, split: str) -> bool:
        return self._folders(split) is not None

    def _folders(self, split: str) -> tuple[Path, Path] | None:
        pairs = (
            (self.root / images.format(name), self.root / labels.format(name))
            for name in SPLITS[split]
            for images, labels in (("images/{}", "labels/{}"), ("{}/images", "{}/labels"))
        )
        return next((pair for pair in pairs if pair[0].is_dir() and next(pair[1].rglob("*.txt"), None)), None)

    def place(self, split: str) -> tuple[Path, Path]:
        found = self._folders(split)
        assert found is not None
        return found

    def read(self, split: str, class_names: Sequence[str] | None) -> tuple[Annotated, list[Stamp]]:
        folder, notes = self.place(split)
        names = class_names or _yaml_classes(self.root) or _listed_classes(self.root)
        if not names:
            problem = "has neither data.yaml with names nor classes.txt"
            raise DataError(str(self.root), problem, "list the names of the classes, one per line")
        found = list[tuple[str, ImageObjects]]()
        stamps = [*_class_stamps(self.root), stamp(folder), stamp(notes)]
        for stem, file in _by_stem(folder).items():
            path, text = notes / f"{stem}.txt", ""
            if path.is_file():  # without one, an image has no objects
                stamps.append(stamp(path))
                text = read_file(path).decode("utf-8-sig", "replace")
            found.append((file, parse_yolo(text, _size_of(folder / file), len(names), str(path))))
        return _joined(found, names), stamps


def _relabelled(read: Annotations, names: Sequence[str]) -> Annotations:
    """Returns annotations with other labels, by the names of the classes. Raises: DataError for a class not in `names`.

    Classes that the file lacks get ids above its own.
    """
    labels = {name: label for label, name in enumerate(names)}
    for name in read.class_names:
        if name not in labels:
            raise DataError(read.origin, f"has a class {name!r} that training has not", did_you_mean(name, names))
    new = [labels[name] for name in read.class_names]
    images = [
        image._replace(instances=tuple(one._replace(label=new[one.label]) for one in image.instances))
        for image in read.images
    ]
    own, free = dict(zip(read.class_names, read.category_ids, strict=True)), max(read.category_ids, default=0) + 1
    ids = tuple(own.get(name, free + label) for name, label in labels.items())
    return replace(read, images=tuple(images), class_names=tuple(names), category_ids=ids)


def _joined(found: Sequence[tuple[str, ImageObjects]], names: Sequence[str]) -> Annotated:
    """Numbers the images in their order, and adds up what was omitted."""
    images = [
        AnnotatedImage(number, file, each.size, each.instances) for number, (file, each) in enumerate(found, start=1)
    ]
    omitted: dict[str, list[str]] = {}
    for file, each in found:
        for why in each.omitted:
            omitted.setdefault(why, []).append(file)
    total = Counter(why for _, each in found for why, own in each.omitted.items() for _ in range(own))
    lines = [f"{count(total[why], 'annotation')} {why}: {listing(files, 3)}" for why, files in omitted.items()]
    return Annotated(images, names, range(1, len(names) + 1), lines)


def _has_image(folder: Path) -> bool:
    """Returns whether a folder directly contains images."""
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def _by_stem(folder: Path) -> dict[str, str]:
    """Returns the images below a folder: relative paths by relative path without extension. Raises: DataError."""
    stems: dict[str, str] = {}
    for path in sorted(images_below(folder).images):
        name = os.path.relpath(path, folder)
        other = stems.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise DataError(str(folder / other), f"{name} has the same name", "keep one of them")
    return stems


def _existing(files: Mapping[str, str], stem: str, folder: Path) -> str:
    if stem not in files:
        raise DataError(str(folder), f"has no image {stem}", "restore it, or remove it from the list")
    return files[stem]


def _class_stamps(root: Path) -> list[Stamp]:
    """Returns the stamps of all files that may name classes, and of their folder."""
    files = [path for name in (*CLASS_FILES, "*.yaml", "*.yml") for path in sorted(root.glob(name))]
    return [stamp(path) for path in (root, *files)]


def _listed_classes(root: Path) -> list[str]:
    path = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        return []
    try:
        return [line.strip() for line in read_file(path).decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as e:
        raise DataError(str(path), "cannot read the classes (not UTF-8)", "write one class per line") from e


def _yaml_classes(root: Path) -> list[str]:
    """Returns the `names` of the YAML file of a YOLO dataset, a list or a dictionary by number."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            names = (yaml.safe_load(read_file(path)) or {}).get("names")
        except (yaml.YAMLError, AttributeError, ValueError, RecursionError):
            continue  # another YAML file
        if isinstance(names, Mapping) and sorted(names) == list(range(len(names))):
            names = [names[i] for i in range(len(names))]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    return []


def _size_of(path: Path) -> tuple[int, int]:
    """Returns the height and width in the header of an image, as it is stored. Raises: DataError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as e:  # Pillow raises any type
        raise DataError(str(path), f"not a readable image ({str(e)[:80]})", "restore or remove it") from e
