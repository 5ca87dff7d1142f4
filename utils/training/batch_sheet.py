"""A picture of a training batch, as the model sees it: augmented, mixed, masked."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from utils.batches import Batch
from utils.class_words import in_words
from utils.pictures import hide, restore, sheet, to_image
from utils.preprocessing import Preprocessing

SHOWN = 32  # images
VISIBLE = 0.1  # parts of a mixed label from here on; smoothing is below


def draw_batch(batch: Batch, preprocessing: Preprocessing, class_names: Sequence[str]) -> Image.Image:
    """Returns the images of the batch with their labels, where there are classes."""
    names = in_words(class_names)
    pixels = restore(batch.images[:SHOWN], preprocessing)
    if isinstance(batch.targets, Tensor) and batch.targets.dtype == torch.bool:
        names, pixels = (), hide(pixels, batch.targets[:SHOWN])
    tiles = [(to_image(image), _caption(batch.targets, i, names)) for i, image in enumerate(pixels)]
    size = "x".join(str(side) for side in batch.images.shape[2:])
    return sheet(tiles, "Training images", f"the first batch after augmentation, mixing and masking, {size} pixels")


def _caption(targets: Any, index: int, names: Sequence[str]) -> str:
    if not names or not isinstance(targets, Tensor):
        return ""
    if not targets.is_floating_point():
        return names[int(targets[index])]
    shares = sorted(((share, label) for label, share in enumerate(targets[index].tolist())), reverse=True)
    return ", ".join(f"{names[label]} {share:.0%}" for share, label in shares[:2] if share >= VISIBLE)
