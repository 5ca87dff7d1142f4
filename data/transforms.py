"""From encoded bytes to a normalised tensor; timm's transforms for training, the paper's for evaluation."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import str_to_interp_mode
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor
from torchvision import transforms

from data.errors import DataError

Transform = Callable[[Image.Image], Tensor]


LONGEST = 10  # sides of an image beyond this ratio are cut before resizing: 1 x 5000 pixels would become 256 x 1280000


def decode(data: bytes, name: str, upright: bool = False) -> Image.Image:
    """Encoded image -> RGB; the first of several frames.

    Args: upright: turn the image as its EXIF orientation says. Raises: DataError that names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata that Pillow finds odd; the pixels are read all the same
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
            if upright:
                image = ImageOps.exif_transpose(image)
            return _eight_bits(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        reason = "empty file" if not data else re.sub(r"<_io.BytesIO[^>]*>", "it", str(e))
        raise DataError(f"not a readable image ({' '.join(reason.split())[:120]}): {name}: restore or remove it") from e


def fit_channels(image: Tensor, channels: int) -> Tensor:
    """A colour image (3, H, W) for a model of another number of input channels: their mean for one, else repeated."""
    if channels == 3:
        return image
    return image.mean(0, keepdim=True) if channels == 1 else image.repeat(-(-channels // 3), 1, 1)[:channels]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits scaled to 8; Pillow's own conversion would clip them to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def train_transform(
    size: int,
    *,
    interpolation: str,
    auto_augment: str,
    crop: dict[str, Any],
    color_jitter: float,
    erase: dict[str, Any],
) -> Transform:
    """RGB image -> float32 (3, size, size): random resized crop, mirroring, RandAugment, random erasing.

    All draws come from the global generators, which the loader seeds for every sample.

    Args: size in pixels; auto_augment: timm's policy string, "none" for none; crop: scale, ratio, hflip;
    color_jitter: strength, without a policy; erase: re_prob, re_mode, re_count.
    Raises: DataError for a policy that timm does not know.
    """
    try:
        return transforms_imagenet_train(
            img_size=size,
            interpolation=interpolation,
            auto_augment=None if auto_augment in ("", "none") else auto_augment,
            color_jitter=color_jitter,
            **crop,
            **erase,
        )
    except (AssertionError, KeyError, ValueError) as e:
        raise DataError(f"no augmentation policy {auto_augment!r}: AUG.AUTO_AUGMENT: see timm's, or set none") from e


def cut_long_side(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than `LONGEST` times as long as wide; any other as it is."""
    width, height = image.size
    most = LONGEST * min(width, height)
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def eval_transform(size: int, *, interpolation: str, crop: bool) -> Transform:
    """RGB image -> float32 (3, size, size), as the published numbers were measured.

    With `crop` the short side goes to int(256 / 224 * size) and the centre is cut out; else the whole image is
    squashed.
    """
    mode = str_to_interp_mode("bicubic" if interpolation == "random" else interpolation)
    if crop:
        resize = [cut_long_side, transforms.Resize(int(256 / 224 * size), mode), transforms.CenterCrop(size)]
    else:
        resize = [transforms.Resize((size, size), mode)]
    normalise = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return transforms.Compose([*resize, transforms.ToTensor(), normalise])
