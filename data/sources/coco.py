"""Annotations of objects in COCO's JSON format: boxes, polygons and run lengths.

Annotations that training cannot use are left out, counted by reason. Evaluation reads all of them from the JSON file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources.base import read_file, with_retries
from data.sources.instances import (
    MARKED,
    AnnotatedImage,
    Instance,
    Omitted,
    Polygons,
    check_unique,
    checked_box,
    checked_polygons,
)
from data.sources.run_lengths import RunLengths
from utils.errors import DataError, count, listing

_REMEDY = "export the annotations as COCO JSON"


@dataclass(frozen=True)
class Annotations:
    """A split. `images` and classes are in the order of the file; `category_ids`: the id of each class.

    `omitted`: ids of the annotations left out, by reason.
    """

    images: tuple[AnnotatedImage, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    omitted: Mapping[str, tuple[int, ...]]
    origin: str

    def summary(self) -> list[str]:
        """Returns a line for each reason to omit annotations, with their number and the first ids."""
        return [
            f"{count(len(ids), 'annotation')} {why}: {listing(map(str, ids), 3)}" for why, ids in self.omitted.items()
        ]


def read_coco(path: Path) -> Annotations:
    """Reads a file of annotations. Raises: DataError if it is no COCO JSON, or ids or names occur twice."""
    origin = str(path)
    try:
        contents = json.loads(with_retries(lambda: read_file(path), lambda: origin))
    except (ValueError, RecursionError) as e:
        raise DataError(origin, f"is no JSON file ({str(e)[:80]})", _REMEDY) from e
    return parse_coco(contents, origin)


def parse_coco(contents: Any, origin: str) -> Annotations:
    """Returns the annotations in the contents of a file. Raises: see `read_coco`."""
    images = _rows(contents, "images", {"id": int, "file_name": str, "height": int, "width": int}, origin)
    categories = _rows(contents, "categories", {"id": int, "name": str}, origin)
    names = tuple(each["name"] for each in categories)
    check_unique("class", names, origin)
    check_unique("image", [each["file_name"] for each in images], origin)
    negative = next((each["id"] for each in categories if each["id"] < 0), None)
    if negative is not None:
        raise DataError(origin, f"has the category id {negative}", "number the categories from 0")
    sizes = {each["id"]: (each["height"], each["width"]) for each in images}
    labels = {each["id"]: i for i, each in enumerate(categories)}
    found: dict[int, list[Instance]] = {number: [] for number in sizes}
    omitted: dict[str, list[int]] = {}
    kinds = {"id": int, "image_id": int, "category_id": int}
    for each in _rows(contents, "annotations", kinds, origin):
        try:
            instance = _instance(each, sizes, labels)
        except Omitted as reason:
            omitted.setdefault(str(reason), []).append(each["id"])
        else:
            found[each["image_id"]].append(instance)
    return Annotations(
        tuple(AnnotatedImage(e["id"], e["file_name"], sizes[e["id"]], tuple(found[e["id"]])) for e in images),
        names,
        tuple(labels),
        {why: tuple(ids) for why, ids in omitted.items()},
        origin,
    )


def _instance(stored: Mapping[str, Any], sizes: Mapping[int, tuple[int, int]], labels: Mapping[int, int]) -> Instance:
    """Raises: Omitted."""
    if stored["image_id"] not in sizes:
        raise Omitted("of unknown images")
    if stored["category_id"] not in labels:
        raise Omitted("of unknown categories")
    if stored.get("ignore"):
        raise Omitted(MARKED)
    size, area = sizes[stored["image_id"]], stored.get("area")
    try:
        x, y, width, height = stored["bbox"]
        corners = [x, y, x + width, y + height]
    except (KeyError, TypeError, ValueError, OverflowError):
        corners = []
    box = checked_box(corners, size)
    if isinstance(area, int | float) and area <= 0:
        raise Omitted("whose area is 0")
    shape = checked_shape(stored.get("segmentation"), size)
    return Instance(box, labels[stored["category_id"]], shape, is_crowd(stored))


def is_crowd(stored: Mapping[str, Any]) -> bool:
    """Returns whether an annotation is of several objects. Raises: Omitted."""
    value = stored.get("iscrowd") or 0
    if value not in (0, 1):
        raise Omitted("whose iscrowd is neither 0 nor 1")
    return bool(value)


def checked_shape(stored: Any, size: tuple[int, int]) -> Polygons | RunLengths | None:
    """Returns the shape in a `segmentation`, None without one. Raises: Omitted."""
    if not stored:
        return None
    if isinstance(stored, dict):
        try:
            runs = RunLengths.parsed(stored)
        except ValueError as e:
            raise Omitted("with a damaged RLE") from e
        if runs.size != size:
            raise Omitted("with an RLE of another size than the image")
        return runs
    return checked_polygons(stored, size)


def _rows(contents: Any, key: str, fields: Mapping[str, type], origin: str) -> list[dict[str, Any]]:
    """Returns a list of the file whose entries have the fields; ids are unique. Raises: DataError."""
    rows = contents.get(key) if isinstance(contents, dict) else None
    if not isinstance(rows, list):
        raise DataError(origin, f"has no list of {key}", _REMEDY)
    for i, row in enumerate(rows):
        for field, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                problem = f"entry {i + 1} of {key} has no {field}" + (" that is an integer" if kind is int else "")
                raise DataError(origin, problem, _REMEDY)
    check_unique(f"id in {key}", [row["id"] for row in rows], origin)
    return rows
