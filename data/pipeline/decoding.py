"""Image decoding: a faster library for ordinary JPEGs, tifffile for multi-band TIFFs, Pillow for everything else."""

import io
import re
import warnings
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from utils.errors import DataError

Pixels = NDArray[np.uint8]  # (height, width, channels)


def decode(data: bytes, name: str, upright: bool = False) -> Image.Image:
    """Decodes an image, or its first frame, to RGB.

    Args: upright: apply the EXIF orientation. Raises: DataError.
    """
    size = jpeg_size(data)
    pixels = None if size is None else decode_jpeg(data, name, *size)  # rejects corrupt files, with `upright` too
    return _decode_by_pillow(data, name, upright) if pixels is None or upright else Image.fromarray(pixels)


def _decode_by_pillow(data: bytes, name: str, upright: bool) -> Image.Image:
    try:
        return _eight_bits(_open_by_pillow(data, name, upright)).convert("RGB")
    except ValueError as e:
        raise _unreadable(str(e), name) from e


def _open_by_pillow(data: bytes, name: str, upright: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual metadata; the pixels are fine
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
            if upright:
                image = ImageOps.exif_transpose(image)
            return image
    except Exception as e:  # Pillow's readers raise any type
        reason = re.sub("cannot identify image file <.*>", "unknown format", str(e)) if data else "empty file"
        raise _unreadable(reason, name) from e


def _unreadable(reason: str, name: str) -> DataError:
    return DataError(name, f"not a readable image ({' '.join(reason.split())[:120]})", "restore or remove it")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns (height, width) of a JPEG that `decode_jpeg` supports; None for any other image."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    usual = colours in ("RGB", "Gray", "YCbCr") and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    return (height, width) if usual else None


def decode_jpeg(data: bytes, name: str, height: int, width: int, reduce: int = 1) -> Pixels:
    """Decodes a JPEG to the same pixels as Pillow, in two thirds of the time.

    Rejects corrupt files, which Pillow would fill with grey or noise; falls back to Pillow for unusual ones.
    Args: height, width: from `jpeg_size`; reduce: decode at 1 / reduce of both sides (1, 2, 4 or 8), which is faster.
    Raises: DataError for a corrupt file.
    """
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=-(-height // reduce), min_width=-(-width // reduce))
    except ValueError as e:
        if re.search(r"premature end|bad huffman", str(e), re.IGNORECASE):
            raise _unreadable(f"truncated or corrupt: {e}", name) from e
    pixels = np.asarray(_decode_by_pillow(data, name, upright=False))
    if reduce == 1:
        return pixels
    return cv2.resize(pixels, (-(-width // reduce), -(-height // reduce)), interpolation=cv2.INTER_AREA)  # type: ignore


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey values to 8 bits; Pillow's conversion would clip them to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def decode_bands(data: bytes, name: str, channels: int, upright: bool = False) -> Pixels:
    """Decodes an image of any number of channels to (height, width, channels).

    16-bit values are scaled to 8 bits. RGB and grey channels are repeated to fill the number of channels.
    Raises: DataError for an unreadable image, or one with a different number of channels.
    """
    pixels = tiff_bands(data, name) if data.startswith(TIFF) else None
    if pixels is None:
        image = _open_by_pillow(data, name, upright)
        same = image.mode in ("RGBA", "CMYK", "LA") and len(image.getbands()) == channels
        pixels = np.asarray(image if same else _eight_bits(image).convert("RGB"))
    if pixels.shape[2] in (1, 3) and channels > pixels.shape[2]:
        pixels = np.tile(pixels, -(-channels // pixels.shape[2]))[..., :channels]
    if pixels.shape[2] != channels:
        problem = f"the image has {pixels.shape[2]} channels, but IN_CHANS is {channels}"
        raise DataError(name, problem, "convert it, or set IN_CHANS")
    return pixels


TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_bands(data: bytes, name: str) -> Pixels | None:
    """Decodes the bands of a TIFF (height, width, bands); returns None for palettes and others that Pillow converts.

    Raises: DataError if it is unreadable, or does not have 8 or 16 bits per channel.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            planar = page.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
            if page.photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
                return None
            values = page.asarray()
    except Exception as e:  # tifffile raises any type
        raise _unreadable(str(e), name) from e
    values = values[..., None] if values.ndim == 2 else np.moveaxis(values, 0, -1) if planar else values
    if values.dtype == np.uint16:
        values = (values / 257).round()
    elif values.dtype != np.uint8:
        raise DataError(name, f"unsupported dtype {values.dtype}", "store 8 or 16 bits per channel")
    return np.ascontiguousarray(values, dtype=np.uint8)
