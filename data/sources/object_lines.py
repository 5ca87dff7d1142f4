"""Annotated images as lines of text, so that an index caches them and loader workers share them."""

import json
from typing import Any

import numpy as np

from data.sources.instances import AnnotatedImage, Instance, Polygons
from data.sources.run_lengths import RunLengths


def to_line(image: AnnotatedImage) -> str:
    """Returns an image and its objects as one line of ASCII text, exactly."""
    objects = [[*each.box, each.label, int(each.crowd), _plain(each.shape)] for each in image.instances]
    return json.dumps([image.number, image.file, *image.size, objects], separators=(",", ":"))


def from_line(line: str) -> AnnotatedImage:
    """Inverts `to_line`."""
    number, file, height, width, objects = json.loads(line)
    instances = tuple(
        Instance((x1, y1, x2, y2), label, _shape(shape, (height, width)), bool(crowd))
        for x1, y1, x2, y2, label, crowd, shape in objects
    )
    return AnnotatedImage(number, file, (height, width), instances)


def _plain(shape: Polygons | RunLengths | None) -> Any:
    if shape is None or isinstance(shape, RunLengths):
        return None if shape is None else shape.text()
    return [points.ravel().tolist() for points in shape]


def _shape(stored: Any, size: tuple[int, int]) -> Polygons | RunLengths | None:
    if stored is None:
        return None
    if isinstance(stored, str):
        return RunLengths.parsed({"size": size, "counts": stored})
    return tuple(np.array(points, np.float64).reshape(-1, 2) for points in stored)
