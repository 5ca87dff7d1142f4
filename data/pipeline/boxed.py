"""Transforms of images with annotated objects, as in the released recipes: image, boxes and masks by the same draws.

Images are resized by OpenCV without antialiasing, masks to the nearest value. Random numbers come from NumPy's global
generator, which is seeded for every sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data.pipeline.decoding import decode, decode_bands, orientation
from data.pipeline.dense import Pixels, resize_image, scaled_size
from data.pipeline.object_masks import object_mask
from data.pipeline.sample import Collated, Erased, Sample, as_lists
from data.sources.base import Record
from data.sources.instances import AnnotatedImage
from utils.errors import DataError
from utils.preprocessing import Size

DIVISOR = 32  # sides of a batch are multiples


@dataclass(frozen=True)
class BoxedOptions:
    """`short`: of which the short side is drawn, in pixels, as long as the long side stays within `long`; `test`: both
    in evaluation. With probability `crop_rate`, an image is first resized to a short side of `crop_short` and cropped
    to sides in the range `crop`. `flip`: probability; `masks`: whether objects have masks; `channels` of an image;
    `upright`: by EXIF."""

    short: tuple[int, ...]
    long: int
    test: tuple[int, int]
    crop_rate: float
    crop_short: tuple[int, ...]
    crop: tuple[int, int]
    flip: float
    masks: bool
    channels: int = 3
    upright: bool = True


class _Boxed:
    def __init__(self, options: BoxedOptions):
        self._options = options

    def _image(self, record: Record) -> Pixels:
        """Decodes an image. Raises: DataError, also if its size is not the annotated one."""
        o, target = self._options, record.target
        if o.channels == 3:
            image = np.asarray(decode(record.data, record.name, o.upright))
        else:
            image = decode_bands(record.data, record.name, o.channels, o.upright)
        if isinstance(target, AnnotatedImage) and target.size != image.shape[:2]:
            sizes = "x".join(map(str, target.size[::-1])), "x".join(map(str, image.shape[1::-1]))
            problem = f"the annotations are for {sizes[0]} pixels, the image has {sizes[1]}"
            turned = target.size == image.shape[1::-1] and orientation(record.data) > 4
            other = "ignore" if o.upright else "apply"
            raise DataError(record.name, problem, f"set DATA.EXIF to {other}" if turned else "correct one")
        return image


class BoxedTrain(_Boxed):
    """Mirrors, resizes to a random size, or crops before. Crowds are left out: they are trained as background.

    The target is a dictionary: `size` of the image, `boxes` (n, 4) float32, `labels` (n,) int64 and, with masks,
    `masks` (n, H, W) uint8.
    """

    def __call__(self, record: Record) -> Sample:
        o, image = self._options, self._image(record)
        shown = _Shown.of(image, record.target, o.masks)
        if np.random.rand() < o.flip:
            shown = shown.mirrored()
        if np.random.rand() < o.crop_rate:
            shown = shown.resized(o.long, int(np.random.choice(o.crop_short))).cropped(*o.crop)
        return shown.resized(o.long, int(np.random.choice(o.short))).sample()


class BoxedEval(_Boxed):
    """Resizes an image. The target is a dictionary: `original` (height, width) of the stored image."""

    def __call__(self, record: Record) -> Sample:
        image = self._image(record)
        short, long = self._options.test
        resized = resize_image(image, scaled_size(image.shape[:2], long, short))
        return Sample(np.ascontiguousarray(resized.transpose(2, 0, 1)), {"original": image.shape[:2]})


@dataclass(frozen=True)
class _Shown:
    """An image (H, W, C) and its objects: boxes (n, 4) float32, labels (n,), masks (n, H, W) or None."""

    image: Pixels
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8] | None

    @staticmethod
    def of(image: Pixels, target: AnnotatedImage, with_masks: bool) -> "_Shown":
        """Raises: DataError for an object without a shape, if masks are asked for."""
        objects = [each for each in target.instances if not each.crowd]
        masks = None
        if with_masks:
            shapes = [each.shape for each in objects if each.shape is not None]
            if len(shapes) != len(objects):
                raise DataError(target.file, "has objects without a mask", "set MODEL.DETECTOR.MASKS to false")
            masks = np.zeros((len(objects), *target.size), np.uint8)
            for mask, shape in zip(masks, shapes, strict=True):
                mask[:] = object_mask(shape, target.size)
        boxes = np.array([each.box for each in objects], np.float32).reshape(-1, 4)
        return _Shown(image, boxes, np.array([each.label for each in objects], np.int64), masks)

    def mirrored(self) -> "_Shown":
        boxes = self.boxes.copy()
        boxes[:, 0::2] = self.image.shape[1] - self.boxes[:, 2::-2]
        masks = None if self.masks is None else self.masks[:, :, ::-1]
        return _Shown(self.image[:, ::-1], boxes, self.labels, masks)

    def resized(self, long: int, short: int) -> "_Shown":
        before = self.image.shape[:2]
        size = scaled_size(before, long, short)
        scale = np.array([size[1] / before[1], size[0] / before[0]] * 2, np.float32)
        masks = None if self.masks is None else _resize_masks(self.masks, size)
        return _Shown(resize_image(self.image, size), self.boxes * scale, self.labels, masks)._clipped()

    def cropped(self, low: int, high: int) -> "_Shown":
        """Cuts out a window with sides drawn from `low` to `high`, limited to the image."""
        height, width = self.image.shape[:2]
        sides = [np.random.randint(min(side, low), min(side, high) + 1) for side in (height, width)]
        top, left = (np.random.randint(0, side - own + 1) for side, own in zip((height, width), sides, strict=True))
        window = slice(top, top + sides[0]), slice(left, left + sides[1])
        boxes = self.boxes - np.array([left, top] * 2, np.float32)
        masks = None if self.masks is None else self.masks[:, window[0], window[1]]
        return _Shown(self.image[window], boxes, self.labels, masks)._clipped()

    def _clipped(self) -> "_Shown":
        """Clips the boxes to the image, and leaves out objects without an area in it."""
        height, width = self.image.shape[:2]
        boxes = np.clip(self.boxes, 0, np.array([width, height] * 2, np.float32))
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return _Shown(self.image, boxes[kept], self.labels[kept], None if self.masks is None else self.masks[kept])

    def sample(self) -> Sample:
        target: dict[str, Any] = {
            "size": self.image.shape[:2],
            "boxes": torch.from_numpy(self.boxes),
            "labels": torch.from_numpy(self.labels),
        }
        if self.masks is not None:
            target["masks"] = torch.from_numpy(np.ascontiguousarray(self.masks))
        return Sample(np.ascontiguousarray(self.image.transpose(2, 0, 1)), target)


def _resize_masks(masks: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    resized = np.empty((len(masks), *size), np.uint8)
    for mask, out in zip(masks, resized, strict=True):
        out[:] = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
    return resized


def collate_boxed(samples: Sequence[Sample]) -> Collated:
    """Pads images of training to the largest, and to multiples of 32, on the right and at the bottom; lists images of
    evaluation, which are padded one at a time.

    The padding is erased on the device: zero after normalisation is no 8-bit value.
    """
    if "boxes" not in samples[0].target:
        return as_lists(samples)
    sizes = [sample.target["size"] for sample in samples]
    height, width = (-(-max(sides) // DIVISOR) * DIVISOR for sides in zip(*sizes, strict=True))
    images = torch.zeros(len(samples), len(samples[0].image), height, width, dtype=torch.uint8)
    erased = []
    for i, (sample, (own_height, own_width)) in enumerate(zip(samples, sizes, strict=True)):
        images[i, :, :own_height, :own_width] = torch.from_numpy(sample.image)
        below = Erased(own_height, 0, height - own_height, width, 0)
        right = Erased(0, own_width, own_height, width - own_width, 0)
        erased += [(i, *each) for each in (below, right) if each.height and each.width]
    rectangles = torch.tensor(erased, dtype=torch.int64).view(-1, 6)
    return Collated(images, [sample.target for sample in samples], rectangles)
