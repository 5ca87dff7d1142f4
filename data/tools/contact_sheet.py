"""A picture of what training sees: images after augmentation, with their labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo

from data.errors import LoaderError
from data.pipeline.device import Finish, Pixels
from data.pipeline.transforms import Prepared, TrainTransform
from data.sources.base import Source
from data.sources.folders import FolderStore

COLUMNS, TILE, GAP, CAPTION = 8, 176, 14, 22
PAPER, INK, FAINT = "#fbfaf7", "#22262b", "#8a8f98"


def draw_sheet(
    root: Path, sheet: Path, count: int, transform: dict[str, Any], seed_sample: Callable[..., None], seed: int
) -> int:
    """Write a PNG with `count` training images, or all where there are fewer; returns how many.

    Args: transform: of TrainTransform; seed_sample: by ("sheet", seed, number). Raises: DataError, LoaderError.
    """
    source = FolderStore(root).open("train")
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    prepare, finish = TrainTransform(**transform), Finish(3, torch.device("cpu"), transform["erase"]["re_mode"])
    tiles = []
    for number in sorted(chosen.tolist(), key=source.label):
        data = source.read(number)
        seed_sample("sheet", seed, number)
        tiles.append((_seen(prepare(data, source.name(number)), finish), _label(source, number)))
    title = f"{len(tiles)} of {len(source):,} training images, {transform['size']} pixels a side, seed {seed}"
    policy = transform["auto_augment"]
    try:
        _lay_out(tiles, title, f"crop, mirror, {policy}, erasing").save(sheet, "PNG")
    except (OSError, ValueError) as e:
        raise LoaderError(f"cannot write the sheet ({e}): {sheet}: name another file") from e
    return len(tiles)


def _seen(prepared: Prepared, finish: Finish) -> Image.Image:
    """As the model sees it, brought back to colours."""
    boxes = torch.tensor([(0, *box) for box in prepared.boxes], dtype=torch.int64).view(-1, 6)
    image = finish(Pixels(torch.from_numpy(prepared.pixels)[None], boxes))[0].permute(1, 2, 0)
    colours = image * torch.tensor(IMAGENET_DEFAULT_STD) + torch.tensor(IMAGENET_DEFAULT_MEAN)
    return Image.fromarray(colours.mul(255).round().clamp(0, 255).byte().numpy())


def _label(source: Source, number: int) -> str:
    """Class name; of a synset, what it means."""
    name = source.class_names[source.label(number)]
    info = ImageNetInfo("imagenet-1k")
    return info.label_name_to_description(name).split(",")[0] if name in info.label_names() else name


def _lay_out(tiles: list[tuple[Image.Image, str]], title: str, subtitle: str) -> Image.Image:
    columns = min(COLUMNS, max(1, len(tiles)))
    rows = -(-len(tiles) // columns)
    head = 64
    size = (GAP + columns * (TILE + GAP), head + rows * (TILE + CAPTION + GAP) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 14), title, INK, ImageFont.load_default(19))
    draw.text((GAP, 40), subtitle, FAINT, ImageFont.load_default(13))
    font = ImageFont.load_default(13)
    for place, (image, label) in enumerate(tiles):
        left = GAP + place % columns * (TILE + GAP)
        top = head + place // columns * (TILE + CAPTION + GAP)
        sheet.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
        while label and draw.textlength(label, font) > TILE:
            label = label.removesuffix("…")[:-1] + "…"
        draw.text((left, top + TILE + 4), label, INK, font)
    return sheet
