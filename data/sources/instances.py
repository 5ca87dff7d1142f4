"""Annotated objects of images, in any file format, and the checks they have in common."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.sources.run_lengths import RunLengths
from utils.errors import DataError

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the stored image
Polygons = tuple[NDArray[np.float64], ...]  # (n, 2) each, x and y of at least three points
MARKED = "marked ignore"  # the only reason that is no mistake
FAR = 1000  # pixels by which a point of a polygon may be outside of an image, in addition to its size


class Instance(NamedTuple):
    """An annotated object. `box` may extend beyond the image; `label` is an index of `class_names`; `shape`: None if
    only the box is annotated; a `crowd` covers several objects that are not separated."""

    box: Box
    label: int
    shape: Polygons | RunLengths | None
    crowd: bool


class AnnotatedImage(NamedTuple):
    """`file`: its name in the file; `size`: height and width by the JSON; `number`: the id."""

    number: int
    file: str
    size: tuple[int, int]
    instances: tuple[Instance, ...]


class Omitted(Exception):
    """Why an annotation is not used, as the end of a sentence."""


def checked_box(values: Any, size: tuple[int, int]) -> Box:
    """Returns x1, y1, x2, y2. Args: size: height and width of the image. Raises: Omitted."""
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(map(is_finite, values)):
        raise Omitted("whose box is not four finite numbers")
    x1, y1, x2, y2 = map(float, values)
    height, width = size
    if min(x2 - x1, y2 - y1) < 1 - 1e-6:  # the corners were rounded
        raise Omitted("whose box has a side below 1 pixel")
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        raise Omitted("whose box is outside of the image")
    return x1, y1, x2, y2


def checked_polygons(stored: Any, size: tuple[int, int]) -> Polygons:
    """Returns the polygons in lists of x, y, x, y, ...; a bad one among good ones is left out.

    Args: size: height and width of the image. Raises: Omitted.
    """
    polygons = tuple(_polygons(stored, 2 * max(size) + FAR))
    if not polygons:
        raise Omitted("whose polygons have fewer than 3 points, or points far outside of the image")
    return polygons


def check_unique(what: str, values: Iterable[Any], origin: str) -> None:
    """Raises: DataError if a value occurs twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise DataError(origin, f"{what} {value} occurs twice", "give each its own")
        seen.add(value)


def is_finite(value: Any) -> bool:
    """Returns whether a value is a finite number."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # of an integer of hundreds of digits
        return False


def _polygons(stored: Any, limit: float) -> Iterator[NDArray[np.float64]]:
    for each in stored if isinstance(stored, list) else ():
        try:
            points = np.array(each, np.float64).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError):
            continue
        if len(points) >= 3 and (abs(points) <= limit).all():
            yield points
