"""Image transforms from encoded bytes to pixels: timm's augmentation for training, the paper's resizing for evaluation.

Pixels stay 8-bit here; data/pipeline/device.py normalises and erases whole batches on the device.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from data.pipeline.array_ops import OPERATIONS
from data.pipeline.decoding import Pixels, decode, decode_bands, decode_jpeg, jpeg_size, orientation
from data.pipeline.sample import Erased, Sample
from data.sources.base import Record
from utils.errors import ConfigError
from utils.preprocessing import CROP_PCT, Size, image_size

Box = tuple[float, float, float, float]  # left, top, right, bottom
LONGEST = 10  # larger aspect ratios are cropped before resizing: 1 x 5000 pixels would become 256 x 1280000
REDUCE_FROM = 2  # crops larger than the result by this factor or more are decoded at a reduced size
_RESIZES = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class TrainTransformOptions:
    """Crop: `size` in pixels, `scale`, `ratio`, `interpolation`, `hflip`. Colours: `auto_augment`: timm's policy
    string, "none" for none; `color_jitter`: strength if there is no policy. Erasing: `re_prob`, `re_mode`, `re_count`.
    Decoding: `decoder`: "auto": libjpeg-turbo for JPEGs and array operations, "pillow": Pillow for everything, which is
    slower; `upright`: apply the EXIF orientation; `channels` of the model."""

    size: Size = (224, 224)
    channels: int = 3
    decoder: str = "auto"
    upright: bool = False
    interpolation: str = "bicubic"
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    re_prob: float = 0.25
    re_mode: str = "pixel"
    re_count: int = 1

    @staticmethod
    def from_config(cfg: CfgNode, channels: int, upright: bool = False) -> "TrainTransformOptions":
        aug = cfg.AUG
        return TrainTransformOptions(
            size=image_size(cfg.DATA.IMG_SIZE),
            channels=channels,
            decoder=cfg.DATA.DECODER,
            upright=upright,
            interpolation=cfg.DATA.INTERPOLATION,
            auto_augment=aug.AUTO_AUGMENT,
            color_jitter=aug.COLOR_JITTER,
            scale=(aug.SCALE[0], aug.SCALE[1]),
            ratio=(aug.RATIO[0], aug.RATIO[1]),
            hflip=aug.HFLIP,
            re_prob=aug.REPROB,
            re_mode=aug.REMODE,
            re_count=aug.RECOUNT,
        )


class TrainTransform:
    """Random resized crop, flip, RandAugment or another policy, and rectangles to erase.

    All draws are timm's and come from the global generators, which the loader seeds for every sample.
    Raises: ConfigError for an unknown policy, or one that does not support the number of channels.
    """

    def __init__(self, options: TrainTransformOptions):
        self.size, self.channels, self._upright = options.size, options.channels, options.upright
        policy = None if options.auto_augment in ("", "none") else options.auto_augment
        self._bands = options.channels not in (1, 3)
        if self._bands and (policy or options.color_jitter):
            problem = f"colour augmentation does not support {options.channels} channels"
            raise ConfigError("AUG.AUTO_AUGMENT", problem, "set it to none, and AUG.COLOR_JITTER to 0")
        on_arrays = options.interpolation in ("bicubic", "bilinear", "random")
        if self._bands and not on_arrays:
            problem = f"{options.interpolation} resizing does not support {options.channels} channels"
            raise ConfigError("DATA.INTERPOLATION", problem, "set it to bicubic or bilinear")
        first, second = _timm_steps(options, policy)
        self._crop: RandomResizedCropAndInterpolation = first[0]
        self._fast = self._bands or (options.decoder != "pillow" and on_arrays)
        steps = [*first[1:], *second]
        self._steps = [_on_arrays(step) for step in steps] if self._fast else steps
        self._erasing = RandomErasing(options.re_prob, max_count=options.re_count, device="cpu")

    def __call__(self, record: Record) -> Sample:
        """Transforms the image; the target is unchanged. Raises: DataError."""
        cropped = self._cropped if self._fast else self._cropped_by_pillow
        image: Any = cropped(record.data, record.name)
        for step in self._steps:
            image = step(image)
        pixels = channels_first(to_channels(np.asarray(image), self.channels))
        return Sample(pixels, record.target, self._rectangles())

    def _cropped(self, data: bytes, name: str) -> Pixels:
        size = None if self._bands else jpeg_size(data)
        if size is not None and self._upright and orientation(data) != 1:
            size = None
        pixels = None if size is not None else self._decoded(data, name)
        height, width = size or pixels.shape[:2]  # type: ignore[union-attr]
        top, left, bottom, right, mode = self._draw(height, width)
        reduce = 1
        if pixels is None:
            spare = min((bottom - top) / self.size[0], (right - left) / self.size[1])
            while reduce < 8 and spare >= 2 * reduce * REDUCE_FROM:
                reduce *= 2
            pixels = decode_jpeg(data, name, height, width, reduce)
        top, left, bottom, right = (round(at / reduce) for at in (top, left, bottom, right))
        return resize(pixels[top:bottom, left:right], self.size, _RESIZES[mode])

    def _decoded(self, data: bytes, name: str) -> Pixels:
        if self._bands:
            return decode_bands(data, name, self.channels, self._upright)
        return np.asarray(decode(data, name, self._upright))

    def _cropped_by_pillow(self, data: bytes, name: str) -> Image.Image:
        image = decode(data, name, self._upright)
        top, left, bottom, right, mode = self._draw(image.height, image.width)
        box = (top, left, bottom - top, right - left)
        return transforms.functional.resized_crop(image, *box, list(self.size), mode)

    def _draw(self, height: int, width: int) -> tuple[int, int, int, int, InterpolationMode]:
        """Draws timm's crop, as (top, left, bottom, right), and its filter."""
        shape = torch.empty((3, height, width), device="meta")
        top, left, h, w = self._crop.get_params(shape, self._crop.scale, self._crop.ratio)
        mode = self._crop.interpolation
        mode = random.choice(mode) if isinstance(mode, tuple | list) else mode
        top, left = min(top, height - 1), min(left, width - 1)  # timm may draw an empty crop of a single row
        return top, left, top + max(h, 1), left + max(w, 1), mode

    def _rectangles(self) -> list[Erased]:
        seen = _Recorder()
        self._erasing._erase(seen, self.channels, *self.size, torch.float32)
        return [Erased(*found, seed=int(torch.randint(2**62, ()))) for found in seen.rectangles]


def _timm_steps(options: TrainTransformOptions, policy: str | None) -> tuple[list[Any], list[Any]]:
    try:
        first, second, _ = transforms_imagenet_train(
            options.size,
            interpolation=options.interpolation,
            auto_augment=policy,
            color_jitter=options.color_jitter if options.channels in (1, 3) else None,  # type: ignore[arg-type]
            separate=True,
            scale=options.scale,
            ratio=options.ratio,
            hflip=options.hflip,
        )
    except (AssertionError, KeyError, ValueError) as e:
        problem = f"unknown augmentation policy {policy!r}"
        raise ConfigError("AUG.AUTO_AUGMENT", problem, "use one of timm's, or set it to none") from e
    return first.transforms, second.transforms


def resize(pixels: Pixels, size: Size, mode: str) -> Pixels:
    """Resizes to (*size, C) with torch's antialiased filters: within one level of Pillow, but five times as fast."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
    planes = F.interpolate(image, size, mode=mode, antialias=True)[0].numpy()
    return cv2.merge(list(planes))


def channels_first(pixels: Pixels) -> Pixels:
    """Transposes (H, W, C) to (C, H, W) with OpenCV: NumPy takes ten times as long."""
    return np.stack(cv2.split(pixels))


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Converts RGB (H, W, 3) to greyscale if `channels` is 1; returns other images unchanged."""
    if channels != 1 or pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).convert("L"))


@dataclass(frozen=True, kw_only=True)
class EvalTransformOptions:
    """`size` in pixels; `interpolation`; `crop`: resize the short side to the size over `crop_pct` and crop the centre,
    otherwise squash the whole image; `upright`: apply the EXIF orientation; `channels` of the model."""

    size: Size = (224, 224)
    channels: int = 3
    interpolation: str = "bicubic"
    crop: bool = True
    crop_pct: float = CROP_PCT
    upright: bool = False

    @staticmethod
    def from_config(cfg: CfgNode, channels: int, crop_pct: float, upright: bool = False) -> "EvalTransformOptions":
        return EvalTransformOptions(
            size=image_size(cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE),
            channels=channels,
            interpolation=cfg.DATA.INTERPOLATION,
            crop=cfg.TEST.CROP,
            crop_pct=crop_pct,
            upright=upright,
        )


class EvalTransform:
    """Resizes with Pillow, as for the published accuracies."""

    def __init__(self, options: EvalTransformOptions):
        self.size, self.channels, self._upright = options.size, options.channels, options.upright
        # as in the original repository, "random" applies to training only
        mode = str_to_interp_mode("bilinear" if options.interpolation == "random" else options.interpolation)
        steps: list[Callable[[Any], Any]] = [transforms.Resize(options.size, mode)]
        if options.crop:
            height, width = (int(side / options.crop_pct) for side in options.size)
            covering = transforms.Resize(height, mode) if height == width else partial(_cover, height, width, mode)
            steps = [crop_long_side, covering, transforms.CenterCrop(options.size)]
        self._resize = transforms.Compose(steps)

    def __call__(self, record: Record) -> Sample:
        """Transforms the image; the target is unchanged. Raises: DataError."""
        data, name = record.data, record.name
        if self.channels in (1, 3):
            pixels = to_channels(np.asarray(self._resize(decode(data, name, self._upright))), self.channels)
        else:
            bands = decode_bands(data, name, self.channels, self._upright)
            pixels = np.dstack([np.asarray(self._resize(Image.fromarray(np.array(band)))) for band in cv2.split(bands)])
        return Sample(channels_first(pixels), record.target)


def crop_long_side(image: Image.Image) -> Image.Image:
    """Crops the centre of an image with an aspect ratio above `LONGEST`."""
    width, height = image.size
    most = LONGEST * min(width, height)
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def visible_box(size: Size, options: EvalTransformOptions) -> Box:
    """Returns the part of an image that `EvalTransform` keeps. Args: size of the image, in pixels."""
    height, width = size
    if not options.crop:
        return 0, 0, width, height
    scale = max(int(own / options.crop_pct) / side for own, side in zip(options.size, size, strict=True))
    high, wide = (min(own / scale, side) for own, side in zip(options.size, size, strict=True))
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def _cover(height: int, width: int, mode: InterpolationMode, image: Image.Image) -> Image.Image:
    """Resizes an image, keeping its aspect ratio, to the smallest size that covers height x width."""
    scale = max(height / image.height, width / image.width)
    size = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
    return transforms.functional.resize(image, size, mode)


class _Recorder:
    """Replaces the image in timm's RandomErasing and records the rectangles."""

    def __init__(self) -> None:
        self.rectangles: list[tuple[int, int, int, int]] = []

    def __setitem__(self, place: tuple[slice, slice, slice], _: Any) -> None:
        _, rows, columns = place
        self.rectangles.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))


def _on_arrays(step: Any) -> Callable[[Pixels], Pixels]:
    """Converts timm's step to work on arrays, with the same random draws."""
    if isinstance(step, transforms.RandomHorizontalFlip):
        return partial(_mirror, step.p)
    if isinstance(step, RandAugment | AutoAugment):
        groups = [step.ops] if isinstance(step, RandAugment) else step.policy
        for operation in (operation for group in groups for operation in group):
            function: Any = operation.aug_fn
            vars(operation)["aug_fn"] = OPERATIONS.get(operation.name) or partial(_through_pillow, function)
        return step
    return partial(_through_pillow, step)


def _mirror(probability: float, pixels: Pixels) -> Pixels:
    """torchvision's RandomHorizontalFlip, on arrays."""
    return cv2.flip(pixels, 1) if torch.rand(1) < probability else pixels  # type: ignore[return-value]


def _through_pillow(function: Callable[..., Any], pixels: Pixels, *arguments: Any, **more: Any) -> Pixels:
    """Runs a step without an array implementation in Pillow."""
    return np.asarray(function(Image.fromarray(np.ascontiguousarray(pixels)), *arguments, **more))
