"""Images with annotated objects, in the layouts of COCO, Pascal VOC and YOLO."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count as count_from
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.sources.base import Record, read_file, with_retries
from data.sources.index import Index, Stamp, stored
from data.sources.instances import AnnotatedImage
from data.sources.object_layouts import layouts
from data.sources.object_lines import from_line, to_line
from utils.errors import DataError, count

_REMEDY = (
    "use annotations/instances_train2017.json and train2017/ (COCO), Annotations/ and JPEGImages/ (VOC), or"
    " images/train/ and labels/train/ (YOLO)"
)


class Trained(NamedTuple):
    """Which images are trained on, by the released rule: sides of at least `smallest` pixels and, unless `empty`, an
    object; a crowd is one here, although it is not trained."""

    smallest: int = 32
    empty: bool = False

    def holds(self, image: AnnotatedImage) -> bool:
        return min(image.size) >= self.smallest and (self.empty or bool(image.instances))


class ObjectSource:
    """Images with their objects; the target of a sample is an `AnnotatedImage`.

    Args: index: of lines of text (see `object_lines`), in the order of the annotations, with columns of numbers; place:
    the folder of the images, and the file or folder of the annotations; classes: names in label order, and their ids;
    counts: objects of each class, without crowds; omitted: lines on what is not used.
    """

    def __init__(
        self,
        index: Index,
        place: tuple[Path, Path],
        classes: Mapping[str, int],
        counts: Sequence[int],
        omitted: Sequence[str] = (),
    ):
        self.class_names, self.category_ids = tuple(classes), tuple(classes.values())
        self.folder, self.origin = place
        self.counts, self.omitted, self._index = tuple(counts), tuple(omitted), index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> Record:
        image = self.image(i)
        path = self.folder / image.file
        return Record(with_retries(lambda: read_file(path), lambda: str(path)), image, str(path))

    def image(self, i: int) -> AnnotatedImage:
        """Returns the objects of a sample without reading its image."""
        return from_line(self._index.name(i))

    def name(self, i: int) -> str:
        return str(self.folder / self.image(i).file)

    def sizes(self) -> NDArray[np.int64]:
        """Returns the height and width of every image (n, 2), by the annotations."""
        return np.stack([self._index.columns["height"], self._index.columns["width"]], 1)

    def numbers(self) -> NDArray[np.int64]:
        """Returns the id of every image (n,)."""
        return self._index.columns["number"]

    def unshaped(self) -> int:
        """Returns the number of objects, other than crowds, that have only a box."""
        return sum(self.counts) - int(self._index.columns["shapes"].sum())

    def fingerprint(self) -> str:
        """Returns a digest of the classes, the names and the objects."""
        return self._index.digest(self.class_names)


class ObjectStore:
    """A dataset of images with objects. Attributes: root: its folder; layout: the name of its format.

    Raises: DataError if the folder has no known layout.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise DataError(str(root), "no such folder", "set --data-path to a folder of images and annotations")
        found = next((layout for layout in layouts(root) if layout.has("train") or layout.has("val")), None)
        if found is None:
            raise DataError(str(root), "contains no annotations of objects", _REMEDY)
        self.root, self._layout, self.layout = root, found, found.name

    def has(self, split: str) -> bool:
        return self._layout.has(split)

    def open(self, split: str, class_names: Sequence[str] | None = None, rule: Trained | None = None) -> ObjectSource:
        """Opens "train" or "val".

        Args: class_names: in label order, None for the split's own; rule: which images are used, None for all.
        Raises: DataError for a missing split, an unreadable annotation, a class not in `class_names`, or no image.
        """
        if not self.has(split):
            raise DataError(str(self.root), f"has no {split} images", _REMEDY)
        origin = self._layout.origin(split)

        def build() -> tuple[Index, Any, list[Stamp]]:
            read = self._layout.read(split)
            read = read if class_names is None else read.relabelled(class_names, origin)
            images = [image for image in read.images if rule is None or rule.holds(image)]
            counts = Counter(one.label for image in images for one in image.instances if not one.crowd)
            classes = dict(zip(read.class_names, read.category_ids or count_from(1), strict=False))
            notes = {
                "folder": str(read.folder),
                "classes": list(classes.items()),
                "counts": [counts[label] for label in range(len(classes))],
                "omitted": [*read.omitted, *_left_out(len(read.images) - len(images), rule)],
            }
            return _indexed(images), notes, list(read.stamps)

        chosen = json.dumps([class_names, rule])
        key = f"objects\0{self.layout}\0{origin.resolve()}\0{split}\0{chosen}"
        index, notes = stored(key, build)
        if not len(index):
            remedy = "set DATA.KEEP_EMPTY to true, or add annotations" if rule and not rule.empty else _REMEDY
            raise DataError(str(origin), f"has no {split} images to use", remedy)
        if not notes["classes"]:
            raise DataError(str(origin), "has no classes", "annotate objects, and name their classes")
        place = Path(notes["folder"]), origin
        return ObjectSource(index, place, dict(notes["classes"]), notes["counts"], notes["omitted"])


def _left_out(images: int, rule: Trained | None) -> list[str]:
    if rule is None or not images:
        return []
    what = "smaller than" if rule.empty else "without objects, or smaller than"
    return [f"{count(images, 'image')} {what} {rule.smallest} pixels"]


def _indexed(images: Sequence[AnnotatedImage]) -> Index:
    lines = [to_line(image) for image in images]
    return Index.build(
        lines,
        range(len(lines)),  # keeps the order
        height=[image.size[0] for image in images],
        width=[image.size[1] for image in images],
        number=[image.number for image in images],
        shapes=[sum(one.shape is not None and not one.crowd for one in image.instances) for image in images],
    )
