"""A picture of augmented training images with their labels."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from timm.data import ImageNetInfo

from data.pipeline.device import Normalize, Pixels
from data.pipeline.transforms import Prepared, TrainTransform, TrainTransformOptions
from data.sources.base import Source
from data.sources.folders import FolderStore
from utils.errors import ResourceError
from utils.files import atomic_path
from utils.preprocessing import Preprocessing
from utils.seeding import seed_cpu

COLUMNS, TILE, GAP, CAPTION = 8, 176, 14, 22
PAPER, INK, FAINT = "#fbfaf7", "#22262b", "#8a8f98"


def draw_sheet(root: Path, sheet: Path, count: int, options: TrainTransformOptions, seed: int) -> int:
    """Writes a PNG with `count` training images, or all if there are fewer; returns how many.

    Raises: DataError; ResourceError if the sheet cannot be written.
    """
    source = FolderStore(root).open("train")
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    pixels = Preprocessing()
    prepare, normalize = TrainTransform(options), Normalize(pixels, torch.device("cpu"), options.re_mode)
    tiles = []
    for i in sorted(chosen.tolist(), key=source.label):
        data = source.read(i)
        seed_cpu("sheet", seed, i)
        tiles.append((_restore(prepare(data, source.name(i)), normalize, pixels), _label(source, i)))
    size = f"{options.size[0]}x{options.size[1]} pixels"
    title = f"{len(tiles)} of {len(source):,} training images, {size}, seed {seed}"
    try:
        with atomic_path(sheet) as temporary:
            _lay_out(tiles, title, f"crop, mirror, {options.auto_augment}, erasing").save(temporary, "PNG")
    except (OSError, ValueError) as e:
        raise ResourceError(f"cannot write the sheet ({e}): {sheet}: name another file") from e
    return len(tiles)


def _restore(prepared: Prepared, normalize: Normalize, pixels: Preprocessing) -> Image.Image:
    """Converts the input of the model back to colours."""
    boxes = torch.tensor([(0, *box) for box in prepared.boxes], dtype=torch.int64).view(-1, 6)
    image = normalize(Pixels(torch.from_numpy(prepared.pixels)[None], boxes))[0].permute(1, 2, 0)
    colours = image * torch.tensor(pixels.std) + torch.tensor(pixels.mean)
    return Image.fromarray(colours.mul(255).round().clamp(0, 255).byte().numpy())


def _label(source: Source, i: int) -> str:
    """Returns the class name, for a synset its description."""
    name = source.class_names[source.label(i)]
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
