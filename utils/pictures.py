"""Sheets of images with captions, and figures as images."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils.preprocessing import Preprocessing

# functions that draw, by name: an image, or a Matplotlib figure
Pictures = Mapping[str, Callable[[], Any]]
COLUMNS, TILE, GAP, CAPTION, HEAD = 8, 176, 14, 22, 64
PAPER, INK, FAINT = "#fbfaf7", "#22262b", "#8a8f98"


def to_image(pixels: Tensor) -> Image.Image:
    """Returns uint8 (C, H, W) as an image: colours, or the first channel in grey if there are not three."""
    array = pixels.cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)) if len(array) == 3 else array[0])


def restore(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Returns what was normalised, float (B, C, H, W), as uint8 again."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).byte()


def sheet(tiles: Sequence[tuple[Image.Image, str]], title: str, subtitle: str, columns: int = COLUMNS) -> Image.Image:
    """Returns the tiles in rows, each above its caption; a caption that is too long is cut."""
    columns = min(columns, max(1, len(tiles)))
    rows = -(-len(tiles) // columns)
    size = (GAP + columns * (TILE + GAP), HEAD + rows * (TILE + CAPTION + GAP) + GAP)
    drawn = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(drawn)
    draw.text((GAP, 14), title, INK, ImageFont.load_default(19))
    draw.text((GAP, 40), subtitle, FAINT, ImageFont.load_default(13))
    font = ImageFont.load_default(13)
    for place, (image, caption) in enumerate(tiles):
        left = GAP + place % columns * (TILE + GAP)
        top = HEAD + place // columns * (TILE + CAPTION + GAP)
        drawn.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        while caption and draw.textlength(caption, font) > TILE:
            caption = caption.removesuffix("…")[:-1] + "…"
        draw.text((left, top + TILE + 4), caption, INK, font)
    return drawn


def new_figure(width: float, height: float) -> Any:
    """Returns a Matplotlib figure of that many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: Any, dpi: int = 110) -> Image.Image:
    """Returns the figure as an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return Image.open(buffer).convert("RGB")


def as_image(picture: Any) -> Image.Image:
    """Returns an image, which may be given as a Matplotlib figure."""
    return picture if isinstance(picture, Image.Image) else rendered(picture)
