"""Annotations as evaluation by COCO's definition needs them, from any format."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from data.pipeline.object_masks import object_mask
from data.sources.base import read_file, with_retries
from data.sources.instances import AnnotatedImage, Instance
from data.sources.object_store import ObjectSource
from data.sources.run_lengths import RunLengths


def truth_of(source: ObjectSource) -> dict[str, Any]:
    """Returns images, categories and annotations in COCO's format.

    Of a JSON file all annotations with a box of four numbers count, also those that training leaves out; values that
    a file lacks are completed: no crowd, the area of the box, the box as the shape.
    """
    categories = [{"id": i, "name": name} for i, name in zip(source.category_ids, source.class_names, strict=True)]
    images = [source.image(i) for i in range(len(source))]
    sizes = [{"id": image.number, "height": image.size[0], "width": image.size[1]} for image in images]
    if source.origin.suffix == ".json":
        known = {image.number for image in images}, set(source.category_ids)
        stored = json.loads(with_retries(lambda: read_file(source.origin), lambda: str(source.origin)))
        annotations = [_completed(each) for each in stored["annotations"] if _counts(each, *known)]
    else:
        annotations = [each for image in images for each in _annotations(image, source.category_ids)]
    for number, each in enumerate(annotations, start=1):  # 0 would be taken for unmatched
        each["id"] = number
    return {"images": sizes, "categories": categories, "annotations": annotations}


def _counts(stored: Mapping[str, Any], images: set[int], categories: set[int]) -> bool:
    box = stored.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    return numbers and stored["image_id"] in images and stored["category_id"] in categories


def _completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    x, y, width, height = stored["bbox"]
    shape = stored.get("segmentation") or [[x, y, x + width, y, x + width, y + height, x, y + height]]
    usual = {"iscrowd": 0, "area": width * height}
    return {**usual, **stored, "segmentation": shape}


def _annotations(image: AnnotatedImage, category_ids: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    for each in image.instances:
        yield _completed({"image_id": image.number, "category_id": category_ids[each.label], **_plain(each, image)})


def _plain(each: Instance, image: AnnotatedImage) -> dict[str, Any]:
    x1, y1, x2, y2 = each.box
    plain: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(each.crowd)}
    if each.shape is None:
        return plain
    mask = object_mask(each.shape, image.size)
    runs = RunLengths.of(mask)
    return {**plain, "area": int(mask.sum()), "segmentation": {"size": list(runs.size), "counts": list(runs.counts)}}
