"""Contact sheets of captioned images, and figures as images."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils.preprocessing import Preprocessing

# drawing functions by name; each returns an image or a Matplotlib figure
Pictures = Mapping[str, Callable[[], Any]]
COLUMNS, TILE, GAP, CAPTION, HEAD = 8, 176, 14, 22, 64
PAPER, INK, FAINT = "#fbfaf7", "#22262b", "#8a8f98"


def to_image(pixels: Tensor) -> Image.Image:
    """Converts uint8 (C, H, W) to an RGB image or, unless C is 3, the first channel to greyscale."""
    array = pixels.cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)) if len(array) == 3 else array[0])


def restore(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undoes the normalisation: float (B, C, H, W) -> uint8."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).byte()


def sheet(tiles: Sequence[tuple[Image.Image, str]], title: str, subtitle: str, columns: int = COLUMNS) -> Image.Image:
    """Lays the tiles out in rows, each above its caption; long captions are truncated."""
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


# for characters that Matplotlib's own font lacks
_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Arial Unicode MS")


@cache
def _installed_fonts() -> list[str]:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _FONTS if name in installed]


def new_figure(width: float, height: float) -> Any:
    """Creates a Matplotlib figure that needs no display. Args: width, height in inches."""
    import matplotlib  # slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # class names may contain dollar signs
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", *_installed_fonts()]
    warnings.filterwarnings("ignore", "Glyph .* missing from")  # shown as a box if no font has it
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: Any, dpi: int = 110) -> Image.Image:
    """Renders a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return Image.open(buffer).convert("RGB")


def as_image(picture: Any) -> Image.Image:
    """Renders a Matplotlib figure; returns an image unchanged."""
    return picture if isinstance(picture, Image.Image) else rendered(picture)
