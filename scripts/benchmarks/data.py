"""Benchmarks training data loading: this program's loader, timm's create_loader, and torchvision's ImageFolder."""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader, create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from yacs.config import CfgNode

from configs.loading import load_config
from data.loaders import TrainLoader
from data.pipeline.workers import LoaderOptions
from scripts.benchmarks.interleave import compare, table, take_turns, timed
from tasks.registry import new_task
from utils.batches import stacked
from utils.distributed.world import World
from utils.training.plan import RunPlan

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "swin_tiny.yaml"
CLASSES = 8  # for generated files


def write_photographs(root: Path, count: int) -> None:
    """Writes `count` distinct JPEGs of 500x375 pixels, quality 95, to train/, and one per class to val/."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    draw = np.random.default_rng(0)
    for number in range(count):
        photo = photographs[number % 2]
        left, top = int(draw.integers(photo.width - 500)), int(draw.integers(photo.height - 375))
        crop = photo.crop((left, top, left + 500, top + 375))
        if draw.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for part in ("train", "val") if number < CLASSES else ("train",):
            path = root / part / str(number % CLASSES) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            crop.save(path, quality=95, subsampling=0)  # about 110 kB, like ImageNet


def loaders(root: Path, recipe: CfgNode, device: torch.device) -> dict[str, Callable[[], float]]:
    """Returns functions that time one epoch each: this program, timm, torchvision."""
    world = World(device=device)
    task = new_task(recipe, world)
    data = task.open_data(("train",))
    assert data.train is not None
    plan = RunPlan.from_config(recipe, 1, data.train_size)
    ours = TrainLoader(data.train, task.pipeline(data.info), LoaderOptions.from_config(recipe), plan.shape, world)
    epochs = iter(range(10**9))

    def one_of_ours() -> int:
        return sum(_arrived(stacked(batch)) for batch in ours.epoch(next(epochs)))

    def one_of(peer: Iterable[Any]) -> Callable[[], float]:
        return timed(lambda: sum(_arrived(images.to(device, non_blocking=True)) for images, _ in peer))

    peers = {name: one_of(peer) for name, peer in _peers(root, recipe, device).items()}
    return {"this program": timed(one_of_ours), **peers}


def _arrived(images: torch.Tensor) -> int:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return len(images)


def _peers(root: Path, recipe: CfgNode, device: torch.device) -> dict[str, Iterable[Any]]:
    size, batch, workers = recipe.DATA.IMG_SIZE, recipe.DATA.BATCH_SIZE, recipe.DATA.NUM_WORKERS
    augmentation = {
        "auto_augment": recipe.AUG.AUTO_AUGMENT,
        "scale": tuple(recipe.AUG.SCALE),
        "ratio": tuple(recipe.AUG.RATIO),
        "hflip": recipe.AUG.HFLIP,
        "interpolation": recipe.DATA.INTERPOLATION,
        "re_prob": recipe.AUG.REPROB,
        "re_mode": recipe.AUG.REMODE,
        "re_count": recipe.AUG.RECOUNT,
    }
    loading = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": device.type == "cuda"}
    images = ImageDataset(str(root / "train"))
    timm_loader = create_loader(
        images, (3, size, size), batch, is_training=True, device=device, **loading, **augmentation
    )
    transform = create_transform(size, is_training=True, **augmentation)
    folder = DataLoader(ImageFolder(str(root / "train"), transform), batch, shuffle=True, drop_last=True, **loading)
    return {"timm": timm_loader, "torchvision": folder}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `data`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = [("DATA.NUM_WORKERS", options.workers), ("DATA.IMG_SIZE", options.size), ("AUG.MIXUP", 0)]
    settings += [("DATA.BATCH_SIZE", options.batch_size), ("AUG.CUTMIX", 0)]
    with tempfile.TemporaryDirectory(prefix="benchmark_") as made:
        root = options.data_path or Path(made)
        cfg = load_config(RECIPE, [(*setting, "benchmark") for setting in [*settings, ("DATA.DATA_PATH", str(root))]])
        if options.data_path is None:
            write_photographs(root, options.images)
        files = [file for file in (root / "train").rglob("*") if file.is_file()]
        kilobytes = sum(file.stat().st_size for file in files) / 1000 / max(1, len(files))
        rows = compare(take_turns(loaders(root, cfg, device), options.rounds))
    setting = (
        f"{len(files)} files of {kilobytes:.0f} kB on average, {options.size}x{options.size},"
        f" batch {options.batch_size}, {options.workers} workers, {device}, recipe of {RECIPE.name} without mixing"
    )
    return {"setting": setting, "tables": {"training input": table(rows)}, "rows": [asdict(row) for row in rows]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-path", type=Path, metavar="FOLDER", help="with train/ and val/ (default: generated files)"
    )
    parser.add_argument("--images", type=int, default=1024, help="files to generate (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="default %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of the model's images (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="measured epochs (default %(default)s)")
