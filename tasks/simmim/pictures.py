"""Pictures of masked and reconstructed images."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from tasks.simmim.masking import in_pixels
from utils.batches import Batch, stacked
from utils.pictures import restore, sheet, to_image
from utils.preprocessing import Preprocessing

GREY = 128  # value of masked pixels


def hide(pixels: Tensor, mask: Tensor) -> Tensor:
    """Greys out the masked squares of images, uint8 (B, C, H, W). Args: mask: bool (B, h, w), one per square."""
    return torch.where(in_pixels(mask, pixels), GREY, pixels)


def masked_sheet(batch: Batch, preprocessing: Preprocessing, limit: int) -> Image.Image:
    """Returns up to `limit` images of a training batch, with masks if the batch is masked."""
    pixels = restore(stacked(batch)[:limit], preprocessing)
    masked = isinstance(batch.targets, Tensor) and batch.targets.dtype == torch.bool  # labels before masking
    pixels = pixels if not masked else hide(pixels, batch.targets[:limit])
    size = "x".join(str(side) for side in pixels.shape[2:])
    tiles = [(to_image(image), "") for image in pixels]
    return sheet(tiles, "Training images", f"as the model sees them, {size} pixels")


def reconstruction_sheet(
    images: Tensor, masks: Tensor, predicted: Tensor, preprocessing: Preprocessing
) -> Callable[[], Image.Image]:
    """Returns a function that draws three rows: originals, masked, reconstructed.

    Args: images, predicted: normalised, (B, C, H, W); masks: bool (B, h, w), one element per square.
    """
    originals, predictions = restore(images, preprocessing), restore(predicted, preprocessing)
    rows = {
        "original": originals,
        "masked": hide(originals, masks),
        "reconstructed": torch.where(in_pixels(masks, images), predictions, originals),
    }
    tiles = [(to_image(image), name) for name, pixels in rows.items() for image in pixels]
    return lambda: sheet(tiles, "Reconstruction", "masked pixels as the model predicts them", columns=len(images))
