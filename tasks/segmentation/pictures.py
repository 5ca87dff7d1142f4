"""Pictures of label maps: overlays, sheets of predictions, and the confusion of classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.pipeline.label_maps import IGNORED, Colour
from utils.pictures import new_figure, sheet, to_image

OPACITY = 0.55  # of the colours over an image
Example = tuple[Tensor, Tensor, Tensor, str]  # image uint8 (C, h, w), labels and predictions uint8 (H, W), and name


def label_image(labels: NDArray[np.uint8], colours: Sequence[Colour]) -> Image.Image:
    """Returns a label map (H, W) as an image whose palette shows the colours; its pixel values are the classes."""
    image = Image.frombytes("P", labels.shape[::-1], np.ascontiguousarray(labels).tobytes())
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    image.putpalette(palette.flatten().tolist())
    return image


def overlay(image: Image.Image, labels: NDArray[np.uint8], colours: Sequence[Colour]) -> Image.Image:
    """Returns an image with the classes of its pixels in colour; ignored pixels stay. Args: labels (H, W), of any size:
    the image is resized to it."""
    table = np.zeros((256, 3), np.float32)
    table[: len(colours)] = colours
    resized = image.convert("RGB").resize(labels.shape[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, np.float32)
    mixed = (1 - OPACITY) * pixels + OPACITY * table[labels]
    return Image.fromarray(np.where((labels == IGNORED)[..., None], pixels, mixed).round().astype(np.uint8))


def overlay_sheet(drawn: Sequence[Example], colours: Sequence[Colour], title: str = "Predictions") -> Image.Image:
    """Draws images, their label maps and their predictions in a row each."""
    tiles = []
    for image, labels, predicted, name in drawn:
        shown = to_image(image)
        tiles.append((shown, name.rpartition("/")[2]))
        tiles.append((overlay(shown, labels.numpy(), colours), "labels"))
        right = (labels == predicted)[labels != IGNORED].float().mean().item()
        tiles.append((overlay(shown, predicted.numpy(), colours), f"predicted, {100 * right:.1f}% right"))
    return sheet(tiles, title, "image, labels, prediction", columns=3)


def confusion_figure(matrix: Tensor, class_names: Sequence[str]) -> Any:
    """Returns a figure of the confusion matrix, each true class (row) scaled to 1."""
    side = max(4.0, 0.3 * len(class_names) + 2)
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    shares = matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="viridis", vmin=0, vmax=1)
    places = range(len(class_names))
    axes.set_xticks(places, class_names, rotation=90)
    axes.set_yticks(places, class_names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labels")
    return figure
