"""From encoded bytes to RGB pixels: Pillow for every kind of image, a faster library for the usual JPEG."""

import io
import re
import warnings

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data.errors import DataError

Pixels = NDArray[np.uint8]  # (height, width, 3)


def decode(data: bytes, name: str, upright: bool = False) -> Image.Image:
    """Encoded image -> RGB; the first of several frames.

    Args: upright: turn the image as its EXIF orientation says. Raises: DataError that names the file.
    """
    size = jpeg_size(data)
    pixels = None if size is None else decode_jpeg(data, name, *size)  # refuses what is damaged, with `upright` too
    return _decode_by_pillow(data, name, upright) if pixels is None or upright else Image.fromarray(pixels)


def _decode_by_pillow(data: bytes, name: str, upright: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata that Pillow finds odd; the pixels are read all the same
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
            if upright:
                image = ImageOps.exif_transpose(image)
            return _eight_bits(image).convert("RGB")
    except Exception as e:  # Pillow's readers end in any kind of error
        raise _unreadable("empty file" if not data else re.sub(r"<_io.BytesIO[^>]*>", "it", str(e)), name) from e


def _unreadable(reason: str, name: str) -> DataError:
    return DataError(f"not a readable image ({' '.join(reason.split())[:120]}): {name}: restore or remove it")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that `decode_jpeg` takes; None for any other image, which is for `decode`."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    usual = colours in ("RGB", "Gray", "YCbCr") and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    return (height, width) if usual else None


def decode_jpeg(data: bytes, name: str, height: int, width: int, reduce: int = 1) -> Pixels:
    """The pixels that Pillow gives, in two thirds of the time.

    What is damaged is refused, though Pillow would fill it up with grey or noise; mere oddities are read by Pillow.
    Args: height, width: of `jpeg_size`; reduce: decode to 1 / reduce of both sides (1, 2, 4 or 8), which is faster.
    Raises: DataError for a damaged file.
    """
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=-(-height // reduce), min_width=-(-width // reduce))
    except ValueError as e:
        if re.search(r"premature end|bad huffman", str(e), re.IGNORECASE):
            raise _unreadable(f"truncated or damaged: {e}", name) from e
    pixels = np.asarray(_decode_by_pillow(data, name, upright=False))
    if reduce == 1:
        return pixels
    return cv2.resize(pixels, (-(-width // reduce), -(-height // reduce)), interpolation=cv2.INTER_AREA)  # type: ignore


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits scaled to 8; Pillow's own conversion would clip them to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
