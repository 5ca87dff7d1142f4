"""The layouts of datasets with annotated objects: COCO, Pascal VOC and YOLO."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import yaml

from data.pipeline.decoding import upright_size
from data.sources.base import read_file
from data.sources.box_files import ImageObjects, class_names_of_voc, parse_voc, parse_yolo
from data.sources.coco import read_coco
from data.sources.folders import images_below
from data.sources.index import Stamp, stamp
from data.sources.instances import AnnotatedImage, check_unique
from data.sources.pairs import SPLITS
from utils.errors import DataError, count, did_you_mean, listing

CLASS_FILES = ("classes.txt", "class_names.txt", "labels.txt", "obj.names")
# files of COCO annotations by the name of a split, and folders of its images
COCO_FILES = (
    *("annotations/instances_{}.json", "annotations/instances_{}20*.json", "annotations/{}.json"),
    *("{}/_annotations.coco.json", "{}.json", "annotations/*_{}.json"),
)
COCO_FOLDERS = ("{}", "images/{}", "{}/images")
VOC_INSIDE = ("", "BCCD", "VOC2012", "VOC2007", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007")
_NAMES = "list the names of the classes, one per line, or as names in data.yaml"


class Annotated(NamedTuple):
    """A split as read. `folder`: of the images; `category_ids`: of the classes, empty if the format has none;
    `omitted`: lines on the annotations that are not used; `stamps`: of everything that was read."""

    folder: Path
    images: Sequence[AnnotatedImage]
    class_names: Sequence[str]
    category_ids: Sequence[int]
    omitted: Sequence[str]
    stamps: Sequence[Stamp]

    def relabelled(self, names: Sequence[str], origin: Path) -> "Annotated":
        """Returns the same with other labels, by the names of the classes; classes that are absent get further ids.

        Raises: DataError for a class not in `names`.
        """
        if list(names) == list(self.class_names):
            return self
        labels = {name: label for label, name in enumerate(names)}
        for name in self.class_names:
            if name not in labels:
                raise DataError(
                    str(origin), f"has a class {name!r} that is not in the training data", did_you_mean(name, names)
                )
        new = [labels[name] for name in self.class_names]
        images = [
            image._replace(instances=tuple(one._replace(label=new[one.label]) for one in image.instances))
            for image in self.images
        ]
        ids: Sequence[int] = ()
        if self.category_ids:
            own, free = dict(zip(self.class_names, self.category_ids, strict=True)), max(self.category_ids) + 1
            ids = [own.get(name, free + label) for name, label in labels.items()]
        return self._replace(images=images, class_names=names, category_ids=ids)


class Layout(Protocol):
    """A dataset in one format."""

    name: str

    def has(self, split: str) -> bool: ...
    def origin(self, split: str) -> Path:
        """Returns the file or folder of the annotations of a split that exists."""
        ...

    def read(self, split: str) -> Annotated:
        """Reads the annotations. Raises: DataError, OSError."""
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

    def has(self, split: str) -> bool:
        return self._file(split) is not None

    def _file(self, split: str) -> Path | None:
        """Returns the file of a split, of several years the latest."""
        forms = (form.format(name) for name in SPLITS[split] for form in COCO_FILES)
        found = (path for form in forms for path in sorted(self.root.glob(form), reverse=True))
        return next((path for path in found if path.is_file()), None)

    def origin(self, split: str) -> Path:
        file = self._file(split)
        assert file is not None
        return file

    def read(self, split: str) -> Annotated:
        file = self.origin(split)
        stamps, read = [stamp(file)], read_coco(file)
        files = [image.file for image in read.images]
        outside = next((name for name in files if os.path.isabs(name) or ".." in Path(name).parts), None)
        if outside is not None:
            raise DataError(str(file), f"names an image outside of the dataset: {outside}", "use relative names")
        folder = self._folder(split, file, files[:1])
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            problem = f"{len(missing)} of {len(files)} images are not in {folder}: {listing(missing, 3)}"
            raise DataError(str(file), problem, "restore them, or remove their entries")
        stamps += [stamp(folder)]
        return Annotated(folder, read.images, read.class_names, read.category_ids, read.summary(), stamps)

    def _folder(self, split: str, file: Path, first: Sequence[str]) -> Path:
        """Returns the folder that contains the first image. Args: file: the annotations."""
        year = file.stem.rpartition("_")[2]  # instances_train2017 -> train2017
        names = [form.format(name) for name in (year, *SPLITS[split]) for form in COCO_FOLDERS]
        folders = [*(self.root / name for name in names), file.parent, self.root / "images", self.root]
        there = (folder for folder in folders if all((folder / name).is_file() for name in first))
        return next(there, next((folder for folder in folders if folder.is_dir()), self.root))


@dataclass(frozen=True)
class _Voc:
    root: Path
    name = "voc"

    def has(self, split: str) -> bool:
        return self.origin(split).is_dir() and self._list(split) is not None

    def _list(self, split: str) -> Path | None:
        names = (*SPLITS[split], *(("trainval",) if split == "train" else ()))
        paths = (self.root / form.format(name) for name in names for form in ("ImageSets/Main/{}.txt", "{}.txt"))
        return next((path for path in paths if path.is_file()), None)

    def origin(self, split: str) -> Path:
        return self.root / "Annotations"

    def read(self, split: str) -> Annotated:
        folder, notes, chosen = self.root / "JPEGImages", self.origin(split), self._list(split)
        assert chosen is not None
        stamps = [*_class_stamps(self.root), stamp(chosen)]
        texts: dict[str, bytes] = {}
        for line in read_file(chosen).decode("utf-8-sig", "surrogateescape").splitlines():
            if not line.strip():
                continue
            whole, first = line.strip(), line.split()[0]  # a second column tells whether a class is in the image
            stem = whole if (notes / f"{whole}.xml").is_file() else first
            path = notes / f"{stem}.xml"
            if not path.is_file():
                raise DataError(str(chosen), f"lists {stem}, which has no {path}", "correct the list")
            stamps.append(stamp(path))
            texts[stem] = read_file(path)
        names = _listed_classes(self.root)
        names = names or class_names_of_voc((text, str(notes / f"{stem}.xml")) for stem, text in texts.items())
        labels = {name: label for label, name in enumerate(names)}
        files = _by_stem(folder)
        absent = next((stem for stem in texts if stem not in files.names), None)
        if absent is not None:
            raise DataError(str(folder), f"has no image {absent}", "restore it, or remove it from the list")
        found = [
            (files.names[stem], parse_voc(text, labels, str(notes / f"{stem}.xml"))) for stem, text in texts.items()
        ]
        return _joined(folder, found, names, [*stamps, *files.stamps])


@dataclass(frozen=True)
class _Yolo:
    root: Path
    name = "yolo"

    def has(self, split: str) -> bool:
        return self._folders(split) is not None

    def _folders(self, split: str) -> tuple[Path, Path] | None:
        pairs = (
            (self.root / images.format(name), self.root / labels.format(name))
            for name in SPLITS[split]
            for images, labels in (("images/{}", "labels/{}"), ("{}/images", "{}/labels"))
        )
        return next((pair for pair in pairs if _have_a_pair(*pair)), None)

    def origin(self, split: str) -> Path:
        folders = self._folders(split)
        assert folders is not None
        return folders[1]

    def read(self, split: str) -> Annotated:
        folders = self._folders(split)
        assert folders is not None
        folder, notes = folders
        names = _yaml_classes(self.root) or _listed_classes(self.root)
        if not names:
            raise DataError(str(self.root), "has neither data.yaml with names nor classes.txt", _NAMES)
        found, files = list[tuple[str, ImageObjects]](), _by_stem(folder)
        stamps = [*_class_stamps(self.root), *files.stamps, stamp(notes)]
        for stem, file in files.names.items():
            path, text = notes / f"{stem}.txt", ""
            stamps.append(stamp(folder / file))  # its size belongs to the annotation
            if path.is_file():  # without one, an image has no objects
                stamps.append(stamp(path))
                text = read_file(path).decode("utf-8-sig", "replace")
            found.append(
                (
                    file,
                    parse_yolo(text, upright_size(read_file(folder / file), str(folder / file)), len(names), str(path)),
                )
            )
        return _joined(folder, found, names, stamps)


def _have_a_pair(images: Path, notes: Path) -> bool:
    """Returns whether a text file belongs to an image of the same name."""
    if not images.is_dir() or not notes.is_dir():
        return False
    stems = _by_stem(images).names
    return any(os.path.splitext(path.relative_to(notes))[0] in stems for path in notes.rglob("*.txt"))


def _joined(
    folder: Path, found: Sequence[tuple[str, ImageObjects]], names: Sequence[str], stamps: Sequence[Stamp]
) -> Annotated:
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
    return Annotated(folder, images, names, (), lines, stamps)


class _Files(NamedTuple):
    """Images below a folder: relative `names` by relative path without extension, and `stamps` of all folders."""

    names: Mapping[str, str]
    stamps: Sequence[Stamp]


def _by_stem(folder: Path) -> _Files:
    """Raises: DataError for two images of one name."""
    stems, below = dict[str, str](), images_below(folder)
    for path in sorted(below.images):
        name = os.path.relpath(path, folder)
        other = stems.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise DataError(str(folder / other), f"{name} has the same name", "keep one of them")
    return _Files(stems, below.stamps)


def _class_stamps(root: Path) -> list[Stamp]:
    """Returns the stamps of all files that may name classes, and of their folder."""
    files = [path for name in (*CLASS_FILES, "*.yaml", "*.yml") for path in sorted(root.glob(name))]
    return [stamp(path) for path in (root, *files)]


def _listed_classes(root: Path) -> list[str]:
    path = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if path is None:
        return []
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise DataError(str(path), "cannot read the classes (not UTF-8)", "write one class per line") from e
    return _checked_names([line.strip() for line in lines if line.strip()], path)


def _yaml_classes(root: Path) -> list[str]:
    """Returns the `names` of the YAML file of a YOLO dataset: a name, a list, or a dictionary by number."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            contents = yaml.load(read_file(path), yaml.BaseLoader)  # all values are text: "no" is a name
        except (yaml.YAMLError, ValueError, RecursionError):
            continue  # of something else
        names = contents.get("names") if isinstance(contents, dict) else None
        if isinstance(names, dict):
            names = [names.get(str(number)) for number in range(len(names))]
        if isinstance(names, str):
            names = [names]
        if names:
            return _checked_names(names, path)
    return []


def _checked_names(names: Sequence[object], path: Path) -> list[str]:
    """Raises: DataError for a name that is no text, or occurs twice."""
    checked = [name for name in names if isinstance(name, str) and name]
    if len(checked) != len(names):
        raise DataError(str(path), "the names of the classes are not numbered from 0, or are no text", _NAMES)
    check_unique("class", checked, str(path))
    return checked
