"""Annotations of objects in one file for each image: XML of Pascal VOC, and text of YOLO."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from data.sources.instances import Box, Instance, Omitted, checked_box, checked_polygons
from utils.errors import DataError, did_you_mean, printable

_VOC = "export it as Pascal VOC XML"
_YOLO = "write lines of: class x y width height, or class x1 y1 x2 y2 x3 y3 ..., in shares of the image's sides"


class ImageObjects(NamedTuple):
    """Objects of one image. `size`: height and width; `omitted`: number of objects left out, by reason."""

    size: tuple[int, int]
    instances: tuple[Instance, ...]
    omitted: Mapping[str, int]


def parse_voc(data: bytes, labels: Mapping[str, int], origin: str) -> ImageObjects:
    """Reads the objects of an XML file. Pixels are numbered from 1 there, and a box includes its last one.

    Difficult objects are crowds here: background in training, ignored in evaluation.

    Args: labels: of the class names. Raises: DataError for a class without label, or a file that is no VOC XML.
    """
    try:
        root = ET.fromstring(data)
        size = _whole(root, "size/height"), _whole(root, "size/width")
        stored = [
            (each.findtext("name", "").strip(), each.findtext("difficult", "0").strip(), each.find("bndbox"))
            for each in root.findall("object")
        ]
        corners = [None if box is None else tuple(map(box.findtext, _CORNERS)) for _, _, box in stored]
    except (ET.ParseError, ValueError, LookupError, OverflowError) as e:
        raise DataError(origin, f"is no annotation of Pascal VOC ({printable(str(e))[:80]})", _VOC) from e
    found, omitted = [], dict[str, int]()
    for (name, difficult, _), texts in zip(stored, corners, strict=True):
        if name not in labels:
            raise DataError(origin, f"has an object of class {name!r}", did_you_mean(name, labels))
        try:
            found.append(Instance(_voc_box(texts, size), labels[name], None, difficult not in ("", "0")))
        except Omitted as reason:
            omitted[str(reason)] = omitted.get(str(reason), 0) + 1
    return ImageObjects(size, tuple(found), omitted)


def class_names_of_voc(texts: Iterable[tuple[bytes, str]]) -> list[str]:
    """Returns the sorted classes of the objects in XML files. Args: texts: contents and origin. Raises: DataError."""
    names = set()
    for data, origin in texts:
        try:
            found = [each.findtext("name", "").strip() for each in ET.fromstring(data).findall("object")]
            if "" in found:
                raise ValueError("an object has no name")
            names |= set(found)
        except (ET.ParseError, ValueError, LookupError, OverflowError) as e:
            raise DataError(origin, f"is no annotation of Pascal VOC ({printable(str(e))[:80]})", _VOC) from e
    return sorted(names)


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _voc_box(texts: tuple[str | None, ...] | None, size: tuple[int, int]) -> Box:
    """Raises: Omitted."""
    try:
        x1, y1, x2, y2 = (float(text or "") for text in texts or ())
    except ValueError:
        return checked_box(None, size)
    return checked_box([x1 - 1, y1 - 1, x2, y2], size)


def _whole(root: ET.Element, path: str) -> int:
    value = int(float(root.findtext(path, "")))
    if value < 1:
        raise ValueError(f"{path} is {value}")
    return value


def parse_yolo(text: str, size: tuple[int, int], classes: int, origin: str) -> ImageObjects:
    """Reads the objects of a text file: a line for each, a box or one polygon; no line for an image without objects.

    Args: size: height and width of the image, which is not in the file; classes: their number.
    Raises: DataError with the line that is no annotation, or has coordinates in pixels or a class that does not exist.
    """
    found, omitted = [], dict[str, int]()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        label, values = _yolo_line(line, f"{origin}:{number}", classes)
        try:
            found.append(_yolo_instance(label, values, size))
        except Omitted as reason:
            omitted[str(reason)] = omitted.get(str(reason), 0) + 1
    return ImageObjects(size, tuple(found), omitted)


def _yolo_line(line: str, place: str, classes: int) -> tuple[int, list[float]]:
    """Raises: DataError."""
    try:
        first, *rest = line.split()
        label, values = int(first), [float(each) for each in rest]
    except ValueError as e:
        raise DataError(place, "is no annotation of YOLO", _YOLO) from e
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise DataError(place, f"has {len(values)} coordinates", _YOLO)
    if not 0 <= label < classes:
        raise DataError(place, f"class {label} of {classes}", "number the classes from 0, and list all their names")
    if any(math.isfinite(value) and abs(value) > 2 for value in values):
        raise DataError(place, "has coordinates in pixels", _YOLO)
    return label, values


def _yolo_instance(label: int, values: list[float], size: tuple[int, int]) -> Instance:
    """Raises: Omitted."""
    height, width = size
    if len(values) == 4:
        x, y, w, h = values
        corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        return Instance(checked_box(corners, size), label, None, False)
    scaled = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    shape = checked_polygons([scaled], size)
    (x1, y1), (x2, y2) = shape[0].min(0).tolist(), shape[0].max(0).tolist()
    return Instance(checked_box([x1, y1, x2, y2], size), label, shape, False)
