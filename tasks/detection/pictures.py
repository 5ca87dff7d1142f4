"""Pictures of detections: boxes and masks over images, and curves of precision."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.pipeline.label_maps import Colour, default_colours
from utils.fonts import draw_text, text_width
from utils.pictures import PAPER, TILE, new_figure

OPACITY = 0.45  # of a mask over its image
LETTERS = 11  # height of a caption, pixels


class Drawn(NamedTuple):
    """An object to draw: `box` x1, y1, x2, y2 in pixels of the picture; `mask` (H, W) of the picture, or None."""

    box: Sequence[float]
    label: int
    caption: str
    mask: NDArray[Any] | None = None


def draw_objects(image: Image.Image, objects: Sequence[Drawn]) -> Image.Image:
    """Returns an image with boxes, masks and captions in the colours of the classes; the first object is on top."""
    pixels = np.asarray(image.convert("RGB"), np.float32).copy()
    colours = _colours(1 + max((each.label for each in objects), default=0))
    for each in reversed(objects):
        if each.mask is not None:
            inside = each.mask.astype(bool)
            pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * np.array(colours[each.label], np.float32)
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for each in reversed(objects):
        _outline(draw, each, colours[each.label])
    return drawn


def tile(image: Image.Image, objects: Sequence[Drawn], side: int = TILE) -> Image.Image:
    """Returns a square picture of an image, scaled to fit, with its objects."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    own = [
        each._replace(
            box=[value * scale for value in each.box],
            mask=None if each.mask is None else np.asarray(Image.fromarray(each.mask.astype(np.uint8)).resize(size)),
        )
        for each in objects
    ]
    square = Image.new("RGB", (side, side), PAPER)
    drawn = draw_objects(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), own)
    square.paste(drawn, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _outline(draw: ImageDraw.ImageDraw, each: Drawn, colour: Colour) -> None:
    x1, y1, x2, y2 = each.box
    draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=2)
    if each.caption:
        top = max(0.0, y1 - LETTERS - 4)
        width = text_width(each.caption, LETTERS) + 6
        draw.rectangle((x1, top, x1 + width, top + LETTERS + 4), fill=colour)
        ink = "#000000" if sum(colour) > 380 else "#ffffff"
        draw_text(draw, (x1 + 3, top + LETTERS + 1), each.caption, ink, LETTERS)


def _colours(count: int) -> list[Colour]:
    return default_colours(count + 1)[1:]  # the first is black


def precision_figure(curves: Mapping[str, NDArray[np.float64]]) -> Any:
    """Returns a figure of precision by recall. Args: curves: (2, 101) at IoU 0.5 and 0.75, by "box" or "mask"."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for kind, pair in curves.items():
        for iou, values, style in zip((0.5, 0.75), pair, ("-", "--"), strict=True):
            axes.plot(np.linspace(0, 1, len(values)), values, style, label=f"{kind}, IoU {iou}")
    axes.set_xlabel("recall")
    axes.set_ylabel("precision, mean over the classes")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend()
    return figure
