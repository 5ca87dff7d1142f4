"""A picture of augmented training images with their labels."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.pipeline.device import Normalize, Pixels
from data.pipeline.transforms import Prepared, TrainTransform, TrainTransformOptions
from data.sources.folders import FolderStore
from utils.class_words import in_words
from utils.files import writing
from utils.pictures import restore, sheet, to_image
from utils.preprocessing import Preprocessing
from utils.seeding import seed_cpu


def draw_sheet(root: Path, target: Path, count: int, options: TrainTransformOptions, seed: int) -> int:
    """Writes a PNG with `count` training images, or all if there are fewer; returns how many.

    Raises: DataError; ResourceError if the sheet cannot be written.
    """
    source = FolderStore(root).open("train")
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    pixels = Preprocessing()
    prepare, normalize = TrainTransform(options), Normalize(pixels, torch.device("cpu"), options.re_mode)
    tiles, names = [], in_words(source.class_names)
    for i in sorted(chosen.tolist(), key=source.label):
        data = source.read(i)
        seed_cpu("sheet", seed, i)
        tiles.append((_as_seen(prepare(data, source.name(i)), normalize, pixels), names[source.label(i)]))
    size = f"{options.size[0]}x{options.size[1]} pixels"
    title = f"{len(tiles)} of {len(source):,} training images, {size}, seed {seed}"
    with writing(target, "SHEET", ValueError) as temporary:
        sheet(tiles, title, f"crop, mirror, {options.auto_augment}, erasing").save(temporary, "PNG")
    return len(tiles)


def _as_seen(prepared: Prepared, normalize: Normalize, pixels: Preprocessing) -> Image.Image:
    """Returns the input of the model in colours, erased rectangles included."""
    boxes = torch.tensor([(0, *box) for box in prepared.boxes], dtype=torch.int64).view(-1, 6)
    return to_image(restore(normalize(Pixels(torch.from_numpy(prepared.pixels)[None], boxes)), pixels)[0])
