"""The operations of AutoAugment and RandAugment on arrays, by look-up tables and OpenCV instead of Pillow.

Each takes pixels (H, W, 3) uint8 and the arguments of timm's function, and returns new pixels. Look-up tables yield the
same pixels as Pillow. The other operations differ by rounding, the affine ones by the bicubic kernel (a = -0.75 in
OpenCV instead of -0.5): about one level on average, bounded by tests/data/pipeline/test_array_ops.py.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Operation = Callable[..., Pixels]

_LEVELS = np.arange(256)
_FILTERS = {Image.Resampling.BILINEAR: cv2.INTER_LINEAR, Image.Resampling.BICUBIC: cv2.INTER_CUBIC}
# Pillow's filter SMOOTH
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _look_up(pixels: Pixels, table: NDArray[Any]) -> Pixels:
    """Maps pixel values. Args: table: (256,) for all channels, or (256, 3)."""
    table = table.clip(0, 255).astype(np.uint8)
    return cv2.LUT(pixels, table if table.ndim == 1 else table[:, None, :])  # type: ignore[return-value]


def _blend(start: NDArray[Any] | int, end: NDArray[Any], factor: float) -> NDArray[Any]:
    """Interpolates from `start` (0) to `end` (1) and beyond, in float32, and truncates like Pillow."""
    return np.trunc(np.float32(start) + np.float32(factor) * (end - start).astype(np.float32)).clip(0, 255)


def _move(pixels: Pixels, matrix: Sequence[float], fillcolor: Sequence[int], resample: Any) -> Pixels:
    """Applies an affine transform. Args: matrix: maps the result to `pixels`, as in Pillow."""
    if isinstance(resample, list | tuple):
        resample = random.choice(resample)
    a, b, c, d, e, f = matrix
    # Pillow's coordinates refer to corners, OpenCV's to centres
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    size = (pixels.shape[1], pixels.shape[0])
    flags = _FILTERS[resample] | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(  # type: ignore[return-value]
        pixels, centred, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=tuple(fillcolor)
    )


def shear_x(pixels: Pixels, factor: float, **how: Any) -> Pixels:
    return _move(pixels, (1, factor, 0, 0, 1, 0), **how)


def shear_y(pixels: Pixels, factor: float, **how: Any) -> Pixels:
    return _move(pixels, (1, 0, 0, factor, 1, 0), **how)


def translate_x_abs(pixels: Pixels, distance: float, **how: Any) -> Pixels:
    return _move(pixels, (1, 0, distance, 0, 1, 0), **how)


def translate_y_abs(pixels: Pixels, distance: float, **how: Any) -> Pixels:
    return _move(pixels, (1, 0, 0, 0, 1, distance), **how)


def translate_x_rel(pixels: Pixels, fraction: float, **how: Any) -> Pixels:
    return translate_x_abs(pixels, fraction * pixels.shape[1], **how)


def translate_y_rel(pixels: Pixels, fraction: float, **how: Any) -> Pixels:
    return translate_y_abs(pixels, fraction * pixels.shape[0], **how)


def rotate(pixels: Pixels, degrees: float, **how: Any) -> Pixels:
    """Rotates counter-clockwise about the centre."""
    sine, cosine = math.sin(-math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = pixels.shape[1] / 2, pixels.shape[0] / 2
    return _move(pixels, (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y), **how)


def auto_contrast(pixels: Pixels, **_: Any) -> Pixels:
    """Stretches every channel to the range [0, 255]."""
    used = _histograms(pixels) > 0
    low, high = used.argmax(0).astype(float), 255.0 - used[::-1].argmax(0)
    flat = high <= low
    scale = 255.0 / np.where(flat, 1, high - low)
    stretched = np.trunc(_LEVELS[:, None] * scale - low * scale)
    return _look_up(pixels, np.where(flat, _LEVELS[:, None], stretched))


def equalize(pixels: Pixels, **_: Any) -> Pixels:
    """Equalises the histogram of every channel."""
    table = np.empty((256, 3))
    for channel, counts in enumerate(_histograms(pixels).T):
        used = counts[counts > 0]
        step = (used.sum() - used[-1]) // 255 if len(used) > 1 else 0
        below = np.cumsum(counts) - counts
        table[:, channel] = (step // 2 + below) // step if step else _LEVELS
    return _look_up(pixels, table)


def _histograms(pixels: Pixels) -> NDArray[np.int64]:
    """Counts the pixels of each value in each channel: (256, 3)."""
    counts = [cv2.calcHist([pixels], [channel], None, [256], [0, 256]) for channel in range(3)]
    return np.stack([count.ravel() for count in counts], axis=1).astype(np.int64)


def invert(pixels: Pixels, **_: Any) -> Pixels:
    return 255 - pixels


def solarize(pixels: Pixels, threshold: int, **_: Any) -> Pixels:
    """Inverts values at or above the threshold."""
    return _look_up(pixels, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(pixels: Pixels, add: int, threshold: int = 128, **_: Any) -> Pixels:
    """Brightens values below the threshold."""
    return _look_up(pixels, np.where(threshold > _LEVELS, _LEVELS + add, _LEVELS))


def posterize(pixels: Pixels, bits: int, **_: Any) -> Pixels:
    """Keeps the upper bits only."""
    return _look_up(pixels, _LEVELS & ~(2 ** (8 - bits) - 1)) if bits < 8 else pixels


def contrast(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    """Interpolates from the mean grey (0) to the image (1) and beyond."""
    mean = int(_grey(pixels).mean() + 0.5)
    return _look_up(pixels, _blend(mean, _LEVELS, factor))


def brightness(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    return _look_up(pixels, _blend(0, _LEVELS, factor))


def color(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    """Interpolates from greyscale (0) to the image (1) and beyond."""
    grey = cv2.cvtColor(_grey(pixels), cv2.COLOR_GRAY2RGB)
    return _weighted(pixels, grey, factor)


def sharpness(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    """Interpolates from the image smoothed except at its border (0) to the image (1) and beyond."""
    smooth = cv2.filter2D(pixels, -1, _SMOOTH)
    for edge in ((0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1)):
        smooth[edge] = pixels[edge]
    return _weighted(pixels, smooth, factor)


def _weighted(pixels: Pixels, start: Any, factor: float) -> Pixels:
    """Blends two images like `_blend`; the offset turns rounding into truncation."""
    return cv2.addWeighted(pixels, factor, start, 1 - factor, -0.499)  # type: ignore[return-value]


def _grey(pixels: Pixels) -> Pixels:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


# by timm's names; increasing variants differ only in their arguments
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": auto_contrast,
    "Brightness": brightness,
    "BrightnessIncreasing": brightness,
    "Color": color,
    "ColorIncreasing": color,
    "Contrast": contrast,
    "ContrastIncreasing": contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "PosterizeIncreasing": posterize,
    "PosterizeOriginal": posterize,
    "Rotate": rotate,
    "Sharpness": sharpness,
    "SharpnessIncreasing": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "SolarizeIncreasing": solarize,
    "TranslateX": translate_x_abs,
    "TranslateXRel": translate_x_rel,
    "TranslateY": translate_y_abs,
    "TranslateYRel": translate_y_rel,
}
