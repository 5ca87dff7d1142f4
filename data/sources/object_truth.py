"""Annotations as evaluation by COCO's definition needs them, from any format."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.base import read_file, with_retries
from data.sources.coco import checked_shape, is_crowd
from data.sources.instances import AnnotatedImage, Omitted, is_finite
from data.sources.object_store import ObjectSource
from data.sources.run_lengths import RunLengths


def truth_of(source: ObjectSource) -> dict[str, Any]:
    """Returns images, categories and annotations in COCO's format.

    Of a JSON file all annotations with a box count, as COCO's tools count them, also those that training leaves out;
    what a file lacks is completed: no crowd, the area of the box, and the box where there is no usable shape.
    """
    categories = [{"id": i, "name": name} for i, name in zip(source.category_ids, source.class_names, strict=True)]
    images = [source.image(i) for i in range(len(source))]
    sizes = [{"id": image.number, "height": image.size[0], "width": image.size[1]} for image in images]
    if source.origin.suffix == ".json":
        places, known = {image.number: image.size for image in images}, set(source.category_ids)
        stored = json.loads(with_retries(lambda: read_file(source.origin), lambda: str(source.origin)))
        usable = (e for e in stored["annotations"] if e["image_id"] in places and e["category_id"] in known)
        annotations = [own for each in usable if (own := _completed(each, places[each["image_id"]]))]
    else:
        annotations = [each for image in images for each in _annotations(image, source.category_ids)]
    for number, each in enumerate(annotations, start=1):  # 0 would be taken for unmatched
        each["id"] = number
    return {"images": sizes, "categories": categories, "annotations": annotations}


def _completed(stored: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any] | None:
    """Returns an annotation of a JSON file with all values that evaluation reads; None without a box.

    Args: size: height and width of its image.
    """
    box, area = stored.get("bbox"), stored.get("area")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
        return None
    try:
        crowd = is_crowd(stored)
    except Omitted:
        crowd = False
    try:
        shape = checked_shape(stored.get("segmentation"), size)
    except Omitted:
        shape = None
    if isinstance(shape, RunLengths):
        segmentation: Any = stored["segmentation"]
    else:
        segmentation = _outline(box) if shape is None else [points.ravel().tolist() for points in shape]
    return {
        "image_id": stored["image_id"],
        "category_id": stored["category_id"],
        "bbox": box,
        "area": area if is_finite(area) else box[2] * box[3],
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


def _annotations(image: AnnotatedImage, category_ids: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    for each in image.instances:
        x1, y1, x2, y2 = each.box
        box = [x1, y1, x2 - x1, y2 - y1]
        polygons = each.shape if isinstance(each.shape, tuple) and not isinstance(each.shape, RunLengths) else ()
        yield {
            "image_id": image.number,
            "category_id": category_ids[each.label],
            "bbox": box,
            "area": sum(map(_area, polygons)) if polygons else box[2] * box[3],
            "iscrowd": int(each.crowd),
            "segmentation": [points.ravel().tolist() for points in polygons] or _outline(box),
        }


def _outline(box: Sequence[float]) -> list[list[float]]:
    """Returns the polygon of a box: x, y, width, height."""
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _area(points: NDArray[np.float64]) -> float:
    """Returns the area of a polygon (n, 2)."""
    x, y = points.T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)
