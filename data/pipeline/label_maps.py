"""Label maps: decoding, and the class of every stored value."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils.errors import DataError, listing

IGNORED = 255  # pixels without a class, in decoded label maps
MAX_CLASSES = 255
COLOURED = 1 << 24  # added to the values of colours
Colour = tuple[int, int, int]
LabelMap = NDArray[np.uint8]  # (height, width), classes or IGNORED


def read_label_map(data: bytes, name: str) -> NDArray[np.int64]:
    """Decodes the stored values of a label map, (height, width): palette indices, 8- or 16-bit values, or RGB colours
    by `code_of`. EXIF orientation is ignored. Raises: DataError.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as e:  # Pillow raises any type
        raise DataError(name, f"not a readable label map ({str(e)[:120]})", "restore or remove it") from e
    if image.mode in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        return np.asarray(image).astype(np.int64)
    if image.mode not in ("RGB", "RGBA", "LA", "PA"):
        raise DataError(name, f"a label map of type {image.mode}", "store one integer, or an RGB colour, per pixel")
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int64), 2, 0)
    return np.where((red == green) & (green == blue), red, COLOURED + red * 65536 + green * 256 + blue)


def code_of(colour: Iterable[int]) -> int:
    """Returns the value of a colour in a label map: the level of a grey, so that greyscale and RGB maps are alike."""
    red, green, blue = map(int, colour)
    return red if red == green == blue else COLOURED + red * 65536 + green * 256 + blue


def shown(value: int) -> str:
    """Returns a stored value for messages: a number, or a colour as r,g,b."""
    return str(value) if value < COLOURED else f"{value >> 16 & 255},{value >> 8 & 255},{value & 255}"


def histogram(maps: Iterable[NDArray[np.int64]]) -> Counter[int]:
    """Counts the pixels of each stored value."""
    counts: Counter[int] = Counter()
    for values in maps:
        for value, count in zip(*np.unique(values, return_counts=True), strict=True):
            counts[int(value)] += int(count)
    return counts


@dataclass(frozen=True)
class LabelCoding:
    """The class of every value that label maps may contain; `IGNORED` for pixels without one."""

    classes: Mapping[int, int]

    def decode(self, data: bytes, name: str) -> LabelMap:
        """Decodes a label map. Raises: DataError for a value without a class."""
        values = read_label_map(data, name)
        keys, classes = self._sorted
        places = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
        wrong = keys[places] != values
        if wrong.any():
            unknown = [shown(value) for value in np.unique(values[wrong]).tolist()]
            problem = f"values without a class: {listing(unknown)}"
            raise DataError(name, problem, "correct the map, or set DATA.IGNORE_LABEL or DATA.REDUCE_ZERO_LABEL")
        return classes[places]

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], LabelMap]:
        keys = sorted(self.classes)
        return np.array(keys, np.int64), np.array([self.classes[key] for key in keys], np.uint8)

    @property
    def reduces_zero(self) -> bool:
        """Whether 0 is ignored and the other values are classes + 1."""
        return self.classes.get(0) == IGNORED and self.classes.get(1) == 0


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
