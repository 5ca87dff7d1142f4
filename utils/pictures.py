"""Contact sheets of captioned images, and figures as images."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from utils.fonts import draw_text, fonts, wrapped
from utils.preprocessing import Preprocessing

# drawing functions by name; each returns an image, a `Sheet` or a Matplotlib figure
Pictures = Mapping[str, Callable[[], Any]]
COLUMNS, TILE, GAP, CAPTION, HEAD = 8, 176, 14, 22, 64
SMALL, LINE = 13, 17  # size and distance of lines of text, in pixels
PAPER, INK, FAINT = "#fbfaf7", "#22262b", "#8a8f98"


@dataclass(frozen=True)
class Sheet:
    """Captioned images with a title, to be drawn by `sheet` or laid out by a web page."""

    tiles: Sequence[tuple[Image.Image, str]]
    title: str
    subtitle: str


def to_image(pixels: Tensor) -> Image.Image:
    """Converts uint8 (C, H, W) to an RGB image or, unless C is 3, the first channel to greyscale."""
    array = pixels.cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)) if len(array) == 3 else array[0])


def restore(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undoes the normalisation: float (B, C, H, W) -> uint8."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).byte()


def sheet(tiles: Sequence[tuple[Image.Image, str]], title: str, subtitle: str, columns: int = COLUMNS) -> Image.Image:
    """Lays the tiles out in rows, each above its caption, which takes as many lines as it needs."""
    columns = min(columns, max(1, len(tiles)))
    captions = [wrapped(caption, TILE, SMALL) for _, caption in tiles]
    rows = range(0, len(tiles), columns)
    heights = [TILE + CAPTION + LINE * (max(1, *map(len, captions[i : i + columns])) - 1) + GAP for i in rows]
    size = (GAP + columns * (TILE + GAP), HEAD + sum(heights) + GAP)
    drawn = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(drawn)
    draw_text(draw, (GAP, 31), title, INK, 19)
    draw_text(draw, (GAP, 52), subtitle, FAINT, SMALL)
    for place, (image, _) in enumerate(tiles):
        left, top = GAP + place % columns * (TILE + GAP), HEAD + sum(heights[: place // columns])
        drawn.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        for number, line in enumerate(captions[place]):
            draw_text(draw, (left, top + TILE + 16 + number * LINE), line, INK, SMALL)
    return drawn


def new_figure(width: float, height: float) -> Any:
    """Creates a Matplotlib figure that needs no display; pass names shown in it through `legible`.

    Args: width, height in inches.
    """
    import matplotlib  # slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["legend.frameon"] = False  # its white would show on a dark page
    matplotlib.rcParams["text.parse_math"] = False  # class names may contain dollar signs
    matplotlib.rcParams["font.family"] = [font.family for font in fonts()]
    warnings.filterwarnings("ignore", "Glyph .* missing from")  # of text that is not made legible
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: Any, dpi: int = 110) -> Image.Image:
    """Renders a figure: the pixels of `savefig`, without encoding a PNG file."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def as_image(picture: Any) -> Image.Image:
    """Renders a sheet or a Matplotlib figure; returns an image unchanged."""
    if isinstance(picture, Sheet):
        return sheet(picture.tiles, picture.title, picture.subtitle)
    return picture if isinstance(picture, Image.Image) else rendered(picture)
