"""Transforms of images with label maps, as in the released recipes: both by the same draws.

Images are resized by OpenCV without antialiasing, label maps to the nearest value. Random numbers come from NumPy's
global generator, which is seeded for every sample.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data.pipeline.decoding import decode, decode_bands, orientation
from data.pipeline.label_maps import IGNORED, LabelCoding, LabelMap
from data.pipeline.sample import Erased, Sample, as_lists, stack
from data.sources.base import Record
from utils.errors import DataError
from utils.preprocessing import Size

Pixels = NDArray[np.uint8]  # (height, width, channels)
REDRAWS = 10  # of a crop that one class dominates


@dataclass(frozen=True)
class DenseOptions:
    """`base`: bounds of the long and of the short side in pixels, before `ratios` scale them; `crop` (height, width) in
    pixels; `max_share`: of the counted pixels of a crop in one class, 1 for any; `flip`: probability; `photometric`:
    whether to distort colours; `scales`: of `base` in evaluation; `channels` of an image; `upright`: by EXIF."""

    base: tuple[int, int]
    ratios: tuple[float, float]
    crop: Size
    max_share: float
    flip: float
    photometric: bool
    scales: tuple[float, ...] = (1.0,)
    channels: int = 3
    upright: bool = True


class _Dense:
    def __init__(self, options: DenseOptions, coding: LabelCoding):
        self._options, self._coding = options, coding

    def _image(self, record: Record) -> Pixels:
        o = self._options
        if o.channels == 3:
            return np.asarray(decode(record.data, record.name, o.upright))
        return decode_bands(record.data, record.name, o.channels, o.upright)

    def _labels(self, record: Record, image: Pixels) -> LabelMap:
        """Decodes the label map. Raises: DataError if its size is not the image's."""
        labels = self._coding.decode(record.target, f"label map of {record.name}")
        if labels.shape != image.shape[:2]:
            sizes = "x".join(map(str, labels.shape)), "x".join(map(str, image.shape[:2]))
            problem = f"its label map has {sizes[0]} pixels, the image {sizes[1]}"
            raise DataError(record.name, problem, self._remedy(record, labels.shape == image.shape[1::-1]))
        return labels

    def _remedy(self, record: Record, transposed: bool) -> str:
        if not transposed or orientation(record.data) < 5:
            return "correct one"
        if self._options.upright:
            return "the label map ignores the EXIF orientation: set DATA.EXIF to ignore"
        return "the label map follows the EXIF orientation: set DATA.EXIF to apply"


class DenseTrain(_Dense):
    """Resizes by a random ratio, crops, mirrors, distorts colours, and pads to the crop: zeros after normalisation, and
    ignored labels."""

    def __call__(self, record: Record) -> Sample:
        o, image = self._options, self._image(record)
        labels = self._labels(record, image)
        ratio = np.random.random_sample() * (o.ratios[1] - o.ratios[0]) + o.ratios[0]
        size = scaled_size(image.shape[:2], int(o.base[0] * ratio), int(o.base[1] * ratio))
        image, labels = resize_image(image, size), resize_labels(labels, size)
        window = draw_crop(labels, o.crop, o.max_share)
        image, labels = image[window], labels[window]
        if np.random.rand() < o.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if o.photometric and image.shape[2] == 3:
            image = distort_colours(image)
        return _padded(image, labels, o.crop)


class DenseEval(_Dense):
    """Resizes to each scale of the base; the label map keeps its size.

    The target is a dictionary: `size` (height, width) of the image, and `labels`, a uint8 tensor, if there are any.
    """

    def __call__(self, record: Record) -> Sample:
        image = self._image(record)
        views = []
        for scale in self._options.scales:
            bounds = (int(side * scale) for side in self._options.base)
            resized = resize_image(image, scaled_size(image.shape[:2], *bounds))
            views.append(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        target: dict[str, Any] = {"size": image.shape[:2]}
        if record.target is not None:
            target["labels"] = torch.from_numpy(self._labels(record, image))
        return Sample(views, target)


def collate_dense(samples: Any) -> Any:
    """Stacks crops of training; of evaluation, lists all views of all samples, the views of a sample in a row."""
    if isinstance(samples[0].target, np.ndarray):
        return stack(samples)
    views = [sample._replace(image=view) for sample in samples for view in sample.image]
    listed = as_lists(views)
    return type(listed)(listed.images, [sample.target for sample in samples])


def scaled_size(size: tuple[int, ...], long: int, short: int) -> Size:
    """Returns the largest (height, width) of this image `size`, scaled, with sides within `long` and `short`."""
    scale = min(long / max(size), short / min(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def resize_image(image: Pixels, size: Size) -> Pixels:
    """Resizes (H, W, C) to (*size, C): bilinear, without antialiasing."""
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8).reshape(*size, -1)


def resize_labels(labels: LabelMap, size: Size) -> LabelMap:
    """Resizes (H, W) to the nearest label."""
    return np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def draw_crop(labels: LabelMap, crop: Size, max_share: float) -> tuple[slice, slice]:
    """Draws a window of at most the `crop` size, again while one class covers `max_share` of the counted pixels or is
    the only one; the draw after ten failures is not checked."""
    window = _draw_window(labels.shape, crop)
    for _ in range(REDRAWS if max_share < 1 else 0):
        values, counts = np.unique(labels[window], return_counts=True)
        counts = counts[values != IGNORED]
        if len(counts) > 1 and counts.max() / counts.sum() < max_share:
            break
        window = _draw_window(labels.shape, crop)
    return window


def _draw_window(size: tuple[int, ...], crop: Size) -> tuple[slice, slice]:
    starts = [np.random.randint(0, max(side - part, 0) + 1) for side, part in zip(size, crop, strict=True)]
    return slice(starts[0], starts[0] + crop[0]), slice(starts[1], starts[1] + crop[1])


def distort_colours(image: Pixels) -> Pixels:
    """Changes brightness, contrast, saturation and hue of an RGB image, each with probability 1/2, to 8 bits after each
    step; contrast first or last."""
    if np.random.randint(2):
        image = _linear(image, 1.0, np.random.uniform(-32, 32))
    contrast_last = not np.random.randint(2)
    if not contrast_last and np.random.randint(2):
        image = _linear(image, np.random.uniform(0.5, 1.5), 0.0)
    if np.random.randint(2):
        hsv = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV), np.uint8)
        hsv[..., 1] = _linear(hsv[..., 1], np.random.uniform(0.5, 1.5), 0.0)
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    if np.random.randint(2):
        hsv = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV), np.uint8)
        hsv[..., 0] = (hsv[..., 0].astype(int) + np.random.randint(-18, 18)) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    if contrast_last and np.random.randint(2):
        image = _linear(image, np.random.uniform(0.5, 1.5), 0.0)
    return image


def _linear(image: Pixels, factor: float, offset: float) -> Pixels:
    return np.clip(image.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _padded(image: Pixels, labels: LabelMap, crop: Size) -> Sample:
    """Pads to the crop on the right and at the bottom. The padding is erased on the device, to the mean colour: zero
    after normalisation is no 8-bit value."""
    height, width = labels.shape
    pixels = np.zeros((image.shape[2], *crop), np.uint8)
    pixels[:, :height, :width] = image.transpose(2, 0, 1)
    padded = np.full(crop, IGNORED, np.uint8)
    padded[:height, :width] = labels
    below, right = Erased(height, 0, crop[0] - height, crop[1], 0), Erased(0, width, height, crop[1] - width, 0)
    return Sample(pixels, padded, [each for each in (below, right) if each.height and each.width])
