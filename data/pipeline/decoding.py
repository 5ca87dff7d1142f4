"""Image decoding: a faster library for ordinary JPEGs, tifffile for multi-band TIFFs, Pillow for everything else."""

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from utils.errors import DataError

Pixels = NDArray[np.uint8]  # (height, width, channels)
MAX_TIFF = 1 << 31  # bytes of a decoded multi-band image
ORIENTATION = 0x0112  # EXIF
_SAMPLES = 277  # TIFF: samples per pixel
# bytes 4 to 11 of HEIC files
HEIF = frozenset(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_TURN = Image.Transpose
# by EXIF orientation, from 2
_TURNS = (
    *(_TURN.FLIP_LEFT_RIGHT, _TURN.ROTATE_180, _TURN.FLIP_TOP_BOTTOM, _TURN.TRANSPOSE),
    *(_TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90),
)


def decode(data: bytes, name: str, upright: bool = False) -> Image.Image:
    """Decodes an image, or its first frame, to RGB.

    Args: upright: apply the EXIF orientation. Raises: DataError.
    """
    size = jpeg_size(data)
    if size is None:
        return _decode_by_pillow(data, name, upright)
    image = Image.fromarray(decode_jpeg(data, name, *size))
    return _turned(image, orientation(data)) if upright else image


def _decode_by_pillow(data: bytes, name: str, upright: bool) -> Image.Image:
    with _image_errors(data, name):
        if data[4:12] in HEIF:
            _enable_heif()
        image = Image.open(io.BytesIO(data))
        bands: Any = getattr(image, "tag_v2", {}).get(_SAMPLES, 1)
        if bands > 4:  # Pillow would drop all but three
            raise DataError(name, f"the image has {bands} channels, but IN_CHANS is 3", "convert it, or set IN_CHANS")
        image.load()
        pixels = _eight_bits(image, name).convert("RGB")
        return _turned(pixels, orientation(image)) if upright else pixels


def upright_size(data: bytes, name: str) -> tuple[int, int]:
    """Returns the height and width of an image, turned by its EXIF orientation, from its header. Raises: DataError."""
    with _image_errors(data, name):
        if data[4:12] in HEIF:
            _enable_heif()
        image = Image.open(io.BytesIO(data))
        height, width = image.height, image.width
        return (width, height) if orientation(image) > 4 else (height, width)


@cache
def _enable_heif() -> None:
    """Registers the decoder of HEIC files with Pillow; it turns them upright itself."""
    from pi_heif import register_heif_opener

    register_heif_opener(thumbnails=False)


@contextmanager
def _image_errors(data: bytes, name: str) -> Iterator[None]:
    """Converts whatever a library raises about an image to DataError."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")  # mostly about unusual metadata; the pixels are fine
        try:
            yield
        except DataError:
            raise
        except ImportError as e:
            raise DataError(name, "no decoder for HEIC images is installed", "pip install pi-heif") from e
        except Exception as e:  # decoders raise any type for malformed files
            reason = re.sub("cannot identify image file <.*>", "unknown format", str(e)) if data else "empty file"
            missing = [f"{note.message}" for note in notes if "support not installed" in str(note.message)]
            package = re.search(r"requires the '(\w+)' package", reason)
            if missing or package:
                wanted = f"pip install {package[1]}" if package else "install a Pillow that supports the format"
                raise DataError(name, f"no decoder is installed ({missing[0] if missing else reason})", wanted) from e
            raise _unreadable(reason or type(e).__name__, name) from e


def orientation(image: Image.Image | bytes) -> int:
    """Returns the EXIF orientation of an image or encoded file; 1 (upright) without valid metadata."""
    if isinstance(image, bytes) and image.startswith(b"\xff\xd8") and b"Exif\0\0" not in image:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
            return int(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # malformed metadata raises any type
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Applies an EXIF orientation."""
    return image.transpose(_TURNS[orientation - 2]) if orientation in range(2, 9) else image


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

    Rejects corrupt files, which Pillow would fill with grey or noise; falls back to Pillow for unusual files.
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


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scales 16- and 32-bit greyscale values to 8 bits; Pillow's conversion would clip them. Raises: DataError."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    # Pillow reads PGM files and signed TIFFs of 16 bits as 32 bits
    bits: Any = getattr(image, "tag_v2", {}).get(258)
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and (image.format == "PPM" or bits == (16,)))
    top = 65535 if sixteen else _largest(values, name)
    if top == 65535:
        values = (values.astype(np.float64) / 257).round().clip(0, 255)
    elif top == 1:
        values = (values.astype(np.float64) * 255).round()
    return Image.fromarray(values.astype(np.uint8))


def _largest(values: NDArray[Any], name: str) -> int:
    """Returns the white level of a 32-bit image: the smallest of 1, 255 and 65535 that no value exceeds.

    Raises: DataError if it is ambiguous: for values that are negative, not finite, or slightly above a possible white
    level, as after interpolation.
    """
    low, high = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    tops = (1, 255, 65535) if floats else (255, 65535)
    top = next((top for top in tops if high <= top), None)
    if not low >= 0 or top is None or (floats and any(other < high < 2 * other for other in tops[:2])):
        problem = f"32-bit values from {low:g} to {high:g} have no known scale"
        raise DataError(name, problem, "store 8 or 16 bits, or floats from 0 to 1")
    return top


def decode_bands(data: bytes, name: str, channels: int, upright: bool = False) -> Pixels:
    """Decodes an image of any number of channels to (height, width, channels).

    16-bit values are scaled to 8 bits. RGB and greyscale channels are repeated to fill the number of channels.
    Raises: DataError for an unreadable image, or one with a different number of channels.
    """
    pixels = tiff_bands(data, name) if data.startswith(TIFF) else None
    if pixels is None:
        with _image_errors(data, name):
            image = Image.open(io.BytesIO(data))
            image.load()
            same = image.mode in ("RGBA", "CMYK", "LA") and len(image.getbands()) == channels
            converted = image if same else _eight_bits(image, name).convert("RGB")
            pixels = np.asarray(_turned(converted, orientation(image)) if upright else converted)
    if pixels.shape[2] in (1, 3) and channels > pixels.shape[2]:
        pixels = np.tile(pixels, -(-channels // pixels.shape[2]))[..., :channels]
    if pixels.shape[2] != channels:
        problem = f"the image has {pixels.shape[2]} channels, but IN_CHANS is {channels}"
        raise DataError(name, problem, "convert it, or set IN_CHANS")
    return pixels


TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_bands(data: bytes, name: str) -> Pixels | None:
    """Decodes a TIFF to (height, width, bands); returns None for palettes and other types that Pillow converts.

    Raises: DataError if it is unreadable, not a single 2-D image, or does not have 8 or 16 bits per channel.
    """
    with _image_errors(data, name), tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        if page.photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
            return None
        axes, size = page.axes, math.prod(page.shape) * (page.dtype.itemsize if page.dtype else 1)
        if axes not in ("YX", "YXS", "SYX") or not size:
            raise _unreadable(f"its shape is {page.shape}, not rows, columns and channels", name)
        if size > MAX_TIFF:
            raise _unreadable(f"{size:,} bytes of pixels exceed limit of {MAX_TIFF:,}", name)
        values = page.asarray()
    values = values[..., None] if axes == "YX" else np.moveaxis(values, 0, -1) if axes == "SYX" else values
    if values.dtype == np.uint16:
        values = (values / 257).round()
    elif values.dtype != np.uint8:
        raise DataError(name, f"unsupported dtype {values.dtype}", "store 8 or 16 bits per channel")
    return np.ascontiguousarray(values, dtype=np.uint8)
