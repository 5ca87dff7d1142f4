"""From encoded bytes to the pixels of a sample: timm's augmentation for training, the paper's resizing for evaluation.

Pixels stay 8-bit here; data/pipeline/device.py normalises and erases whole batches on the device.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import AugmentOp, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from data.errors import DataError
from data.pipeline.array_ops import OPERATIONS
from data.pipeline.decoding import Pixels, decode, decode_jpeg, jpeg_size

LONGEST = 10  # sides of an image beyond this ratio are cut before resizing: 1 x 5000 pixels would become 256 x 1280000
# a crop this many times as large as the result, or more, is decoded smaller
SPARE = 2
_RESIZES = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}


class Box(NamedTuple):
    """A rectangle to erase, and the seed of what is put there."""

    top: int
    left: int
    height: int
    width: int
    seed: int


class Prepared(NamedTuple):
    """Pixels uint8 (3, size, size) and what is to be erased from them."""

    pixels: Pixels
    boxes: list[Box]


class Prepare(Protocol):
    """Encoded image -> pixels for a batch, `size` a side. Args: name: for messages. Raises: DataError."""

    size: int

    def __call__(self, data: bytes, name: str) -> Prepared: ...


class TrainTransform:
    """Random resized crop, mirroring, RandAugment (or what the policy says), boxes to erase.

    All draws are timm's own and come from the global generators, which the loader seeds for every sample.

    Args: size in pixels; interpolation: filter of the crop; auto_augment: timm's policy string, "none" for none; crop:
    scale, ratio, hflip; color_jitter: strength, without a policy; erase: re_prob, re_mode, re_count; decoder: "auto":
    JPEGs by libjpeg-turbo, the rest of the way on arrays, "pillow": all of it in Pillow, which is slower; upright: turn
    images as EXIF says.
    Raises: DataError for a policy that timm does not know.
    """

    def __init__(
        self,
        size: int,
        *,
        interpolation: str,
        auto_augment: str,
        crop: dict[str, Any],
        color_jitter: float,
        erase: dict[str, Any],
        decoder: str = "auto",
        upright: bool = False,
    ):
        self.size, self._upright = size, upright
        policy = None if auto_augment in ("", "none") else auto_augment
        try:
            first, second, _ = transforms_imagenet_train(
                size, interpolation=interpolation, auto_augment=policy, color_jitter=color_jitter, separate=True, **crop
            )
        except (AssertionError, KeyError, ValueError) as e:
            raise DataError(
                f"no augmentation policy {auto_augment!r}: AUG.AUTO_AUGMENT: see timm's, or set none"
            ) from e
        self._crop: RandomResizedCropAndInterpolation = first.transforms[0]
        self._fast = decoder != "pillow" and interpolation != "lanczos"
        steps = [*first.transforms[1:], *second.transforms]
        self._steps = [_on_arrays(step) for step in steps] if self._fast else steps
        self._erasing = RandomErasing(erase["re_prob"], max_count=erase["re_count"], device="cpu")

    def __call__(self, data: bytes, name: str) -> Prepared:
        """See `Prepare`."""
        image: Any = self._cropped(data, name) if self._fast else self._cropped_by_pillow(data, name)
        for step in self._steps:
            image = step(image)
        return Prepared(channels_first(np.asarray(image)), self._boxes())

    def _cropped(self, data: bytes, name: str) -> Pixels:
        size = None if self._upright else jpeg_size(data)
        pixels = np.asarray(decode(data, name, self._upright)) if size is None else None
        height, width = size or pixels.shape[:2]  # type: ignore[union-attr]
        top, left, bottom, right, mode = self._draw(height, width)
        reduce = 1
        if pixels is None:
            while reduce < 8 and min(bottom - top, right - left) >= 2 * reduce * SPARE * self.size:
                reduce *= 2
            pixels = decode_jpeg(data, name, height, width, reduce)
        top, left, bottom, right = (round(at / reduce) for at in (top, left, bottom, right))
        return resize(pixels[top:bottom, left:right], self.size, _RESIZES[mode])

    def _cropped_by_pillow(self, data: bytes, name: str) -> Image.Image:
        image = decode(data, name, self._upright)
        top, left, bottom, right, mode = self._draw(image.height, image.width)
        box = (top, left, bottom - top, right - left)
        return transforms.functional.resized_crop(image, *box, [self.size, self.size], mode)

    def _draw(self, height: int, width: int) -> tuple[int, int, int, int, InterpolationMode]:
        """The crop that timm draws, as (top, left, bottom, right), and its filter."""
        shape = torch.empty((3, height, width), device="meta")
        top, left, h, w = self._crop.get_params(shape, self._crop.scale, self._crop.ratio)
        mode = self._crop.interpolation
        mode = random.choice(mode) if isinstance(mode, tuple | list) else mode
        top, left = min(top, height - 1), min(left, width - 1)  # of a single row timm may draw none
        return top, left, top + max(h, 1), left + max(w, 1), mode

    def _boxes(self) -> list[Box]:
        seen = _Recorder()
        self._erasing._erase(seen, 3, self.size, self.size, torch.float32)
        return [Box(*box, seed=int(torch.randint(2**62, ()))) for box in seen.boxes]


def resize(pixels: Pixels, size: int, mode: str) -> Pixels:
    """To (size, size, 3), with torch's antialiased filters: a level beside Pillow's at most, but five times as fast."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
    planes = F.interpolate(image, (size, size), mode=mode, antialias=True)[0].numpy()
    return cv2.merge(list(planes))


def channels_first(pixels: Pixels) -> Pixels:
    """(H, W, 3) -> (3, H, W), by OpenCV: numpy takes ten times as long."""
    return np.stack(cv2.split(pixels))


class EvalTransform:
    """The resizing with which the published numbers were measured, in Pillow.

    With `crop` the short side goes to int(256 / 224 * size) and the centre is cut out; else the whole image is
    squashed.
    """

    def __init__(self, size: int, *, interpolation: str, crop: bool, upright: bool = False):
        mode = str_to_interp_mode("bicubic" if interpolation == "random" else interpolation)
        steps: list[Callable[[Any], Any]] = [transforms.Resize((size, size), mode)]
        if crop:
            steps = [cut_long_side, transforms.Resize(int(256 / 224 * size), mode), transforms.CenterCrop(size)]
        self.size, self._resize, self._upright = size, transforms.Compose(steps), upright

    def __call__(self, data: bytes, name: str) -> Prepared:
        """See `Prepare`."""
        return Prepared(channels_first(np.asarray(self._resize(decode(data, name, self._upright)))), [])


def cut_long_side(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than `LONGEST` times as long as wide; any other as it is."""
    width, height = image.size
    most = LONGEST * min(width, height)
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


class _Recorder:
    """Stands for an image while timm erases: keeps the rectangles."""

    def __init__(self) -> None:
        self.boxes: list[tuple[int, int, int, int]] = []

    def __setitem__(self, place: tuple[slice, slice, slice], _: Any) -> None:
        _, rows, columns = place
        self.boxes.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))


def _on_arrays(step: Any) -> Callable[[Pixels], Pixels]:
    """A step of timm's for arrays: the same draws."""
    if isinstance(step, transforms.RandomHorizontalFlip):
        return _Mirror(step.p)
    if isinstance(step, RandAugment | AutoAugment):
        groups = [step.ops] if isinstance(step, RandAugment) else step.policy
        for operation in (operation for group in groups for operation in group):
            _exchange(operation)
        return step
    return _ThroughPillow(step)


def _exchange(operation: AugmentOp) -> None:
    own: Any = operation.aug_fn
    vars(operation)["aug_fn"] = OPERATIONS.get(operation.name) or _ThroughPillow(own)


class _Mirror:
    """torchvision's RandomHorizontalFlip."""

    def __init__(self, probability: float):
        self._probability = probability

    def __call__(self, pixels: Pixels) -> Pixels:
        return cv2.flip(pixels, 1) if torch.rand(1) < self._probability else pixels  # type: ignore[return-value]


class _ThroughPillow:
    """A step that has no version for arrays."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, pixels: Pixels, *arguments: Any, **more: Any) -> Pixels:
        return np.asarray(self._function(Image.fromarray(np.ascontiguousarray(pixels)), *arguments, **more))
