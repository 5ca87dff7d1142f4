"""Label maps: decoding, and the class of every stored value."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils.errors import DataError, listing

IGNORED = 255  # pixels without a class, in decoded label maps
MAX_CLASSES = 255
COLOURED = 1 << 24  # added to the values of colours
LOOKED_UP = 1 << 16  # values below are decoded by a table
UNKNOWN = -1  # in that table: a value without a class
Colour = tuple[int, int, int]
Values = NDArray[Any]  # (height, width), as stored: uint8, uint16 or, for colours and 32-bit values, int64
LabelMap = NDArray[np.uint8]  # (height, width), classes or IGNORED


def read_label_map(data: bytes, name: str) -> Values:
    """Decodes the stored values of a label map, (height, width): palette indices, 8- or 16-bit values, or RGB colours
    by `code_of`. The EXIF orientation is ignored, except that Pillow turns TIFF files upright. Raises: DataError.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as e:  # Pillow raises any type
        raise DataError(name, f"not a readable label map ({str(e)[:120]})", "restore or remove it") from e
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint8, copy=False)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        small = image.mode != "I" or (values.min() >= 0 and values.max() < LOOKED_UP)
        return values.astype(np.uint16 if small else np.int64)
    if image.mode not in ("RGB", "RGBA", "LA", "PA"):
        raise DataError(name, f"a label map of type {image.mode}", "store one integer, or an RGB colour, per pixel")
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
    grey = (red == green) & (green == blue)
    if grey.all():
        return red
    codes = red.astype(np.int64) << 16 | green.astype(np.int64) << 8 | blue
    return np.where(grey, red, COLOURED + codes)


def code_of(colour: Iterable[int]) -> int:
    """Returns the value of a colour in a label map: the level of a grey, so that greyscale and RGB maps are alike."""
    red, green, blue = map(int, colour)
    return red if red == green == blue else COLOURED + red * 65536 + green * 256 + blue


def shown(value: int) -> str:
    """Returns a stored value for messages: a number, or a colour as r,g,b."""
    return str(value) if value < COLOURED else f"{value >> 16 & 255},{value >> 8 & 255},{value & 255}"


def histogram(maps: Iterable[Values]) -> Counter[int]:
    """Counts the pixels of each stored value."""
    counts: Counter[int] = Counter()
    for values in maps:
        if values.dtype in (np.uint8, np.uint16):
            every = np.bincount(values.ravel())
            found = every.nonzero()[0]
            own = every[found]
        else:
            found, own = np.unique(values, return_counts=True)
        counts.update(dict(zip(found.tolist(), own.tolist(), strict=True)))
    return counts


@dataclass(frozen=True)
class LabelCoding:
    """The class of every value that label maps may contain; `IGNORED` for pixels without one."""

    classes: Mapping[int, int]

    def decode(self, data: bytes, name: str) -> LabelMap:
        """Decodes a label map. Raises: DataError for a value without a class."""
        values = read_label_map(data, name)
        if values.dtype in (np.uint8, np.uint16):
            labels = self._table[values]
        else:
            keys, classes = self._sorted
            places = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
            labels = np.where(keys[places] == values, classes[places], UNKNOWN)
        if (labels == UNKNOWN).any():
            unknown = [shown(value) for value in np.unique(values[labels == UNKNOWN]).tolist()]
            problem = f"values without a class: {listing(unknown)}"
            raise DataError(name, problem, "correct the map, or set DATA.IGNORE_LABEL or DATA.REDUCE_ZERO_LABEL")
        return labels.astype(np.uint8)

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """The classes of 8- and 16-bit values."""
        table = np.full(LOOKED_UP, UNKNOWN, np.int16)
        for value, label in self.classes.items():
            if 0 <= value < LOOKED_UP:
                table[value] = label
        return table

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
        """All values, ascending, and their classes."""
        keys = sorted(self.classes)
        return np.array(keys, np.int64), np.array([self.classes[key] for key in keys], np.int16)


def default_colours(count: int) -> list[Colour]:
    """Returns Pascal VOC's colours: the bits of the number, dealt to the high bits of red, green and blue."""
    colours = []
    for number in range(count):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append((colour[0], colour[1], colour[2]))
    return colours
