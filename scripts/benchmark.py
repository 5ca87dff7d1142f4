"""Measures speed side by side with peers, in turn in one run; prints a table and writes JSON.

    python scripts/benchmark.py data

measures training input: images/s of this program's loader, of timm's create_loader with its prefetcher, and of
torchvision's ImageFolder with timm's transform; the same files, augmentation, workers and device. Without --data-path
the files are generated from scikit-learn's two photographs, at ImageNet's size and quality (500x375, 95, about 110 kB).

    python scripts/benchmark.py save

measures how long training waits for a checkpoint of Swin-B with AdamW, and how long the write takes in the background.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.loading import load_config
from data.loaders import PipelineOptions, build_train_loader
from data.sources.open import SourceOptions, open_sources
from models.registry import model_options, new_model
from utils.checkpoints.files import checkpoint_name
from utils.distributed import World
from utils.errors import report_error
from utils.precision import Precision
from utils.preprocessing import Preprocessing
from utils.training.plan import RunPlan
from utils.training.provenance import versions
from utils.training.saver import Saver
from utils.training.state import StateOptions, TrainState

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "swin_tiny.yaml"
CLASSES = 8  # of the generated files


@dataclass(frozen=True)
class Row:
    """Images/s of one contender: median, slowest and fastest round; `ratio` to the faster peer in the same round."""

    name: str
    median: float
    slowest: float
    fastest: float
    rounds: int
    ratio: float
    lowest_ratio: float
    highest_ratio: float


def measure(contenders: dict[str, Callable[[], int]], rounds: int) -> list[Row]:
    """Runs every contender once per round, in turn, after one warm-up round.

    Args: contenders: each call processes some images and returns their number; the first is compared with the others.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            begun = time.perf_counter()
            images = work()
            speed = images / (time.perf_counter() - begun)
            if number:
                speeds[name].append(speed)
            print(f"round {number} {name}: {speed:.1f} images/s{'' if number else ' (warm-up)'}", flush=True)
    peers = list(contenders)[1:]
    best = [max(speeds[peer][i] for peer in peers) for i in range(rounds)]
    rows = []
    for name, values in speeds.items():
        ratios = [value / peer for value, peer in zip(values, best, strict=True)]
        spread = (statistics.median(ratios), min(ratios), max(ratios))
        rows.append(Row(name, statistics.median(values), min(values), max(values), rounds, *spread))
    return rows


def table(rows: Iterable[Row]) -> str:
    """Formats the rows as Markdown."""
    lines = ["| | images/s, median | slowest to fastest | to the faster peer, median | lowest to highest |"]
    lines += ["|---|---|---|---|---|"]
    for r in rows:
        ratios = f"{r.ratio:.2f} | {r.lowest_ratio:.2f} to {r.highest_ratio:.2f}"
        lines.append(f"| {r.name} | {r.median:.1f} | {r.slowest:.1f} to {r.fastest:.1f} | {ratios} |")
    return "\n".join(lines)


def surroundings() -> dict[str, Any]:
    """Returns what the numbers depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu, "versions": versions()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


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
            crop.save(path, quality=95, subsampling=0)  # about 110 kB, as ImageNet's


def loaders(root: Path, batch: int, workers: int, size: int, device: torch.device) -> dict[str, Callable[[], int]]:
    """Returns one epoch of each: this program, timm, torchvision."""
    settings = [("DATA.NUM_WORKERS", workers), ("DATA.IMG_SIZE", size), ("DATA.BATCH_SIZE", batch), ("AUG.MIXUP", 0)]
    cfg = load_config(RECIPE, [(*setting, "benchmark") for setting in [*settings, ("AUG.CUTMIX", 0)]])
    world = World(device=device)
    source = open_sources(SourceOptions("imagenet", str(root)), world).train
    plan = RunPlan.from_config(cfg, 1, len(source))
    ours = build_train_loader(source, plan.shape, world, PipelineOptions.from_config(cfg, 3, Preprocessing()))
    epochs = iter(range(10**9))

    def one_of_ours() -> int:
        return sum(_arrived(batch.images) for batch in ours.epoch(next(epochs)))

    contenders: dict[str, Iterable[Any]] = _peers(root, batch, workers, size, device, cfg.AUG, cfg.DATA.INTERPOLATION)

    def one_of(peer: Iterable[Any]) -> Callable[[], int]:
        return lambda: sum(_arrived(images.to(device, non_blocking=True)) for images, _ in peer)

    return {"this program": one_of_ours, **{name: one_of(peer) for name, peer in contenders.items()}}


def _arrived(images: torch.Tensor) -> int:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return len(images)


def _peers(
    root: Path, batch: int, workers: int, size: int, device: torch.device, aug: Any, interpolation: str
) -> dict[str, Iterable[Any]]:
    from timm.data import ImageDataset, create_loader, create_transform
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    augmentation = {
        "auto_augment": aug.AUTO_AUGMENT,
        "scale": tuple(aug.SCALE),
        "ratio": tuple(aug.RATIO),
        "hflip": aug.HFLIP,
        "interpolation": interpolation,
        "re_prob": aug.REPROB,
        "re_mode": aug.REMODE,
        "re_count": aug.RECOUNT,
    }
    timm_loader = create_loader(
        ImageDataset(str(root / "train")),
        (3, size, size),
        batch,
        is_training=True,
        num_workers=workers,
        device=device,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        **augmentation,
    )
    transform = create_transform(size, is_training=True, **augmentation)
    folder = DataLoader(
        ImageFolder(str(root / "train"), transform),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return {"timm": timm_loader, "torchvision": folder}


def benchmark_data(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `data`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="benchmark_") as made:
        root = options.data_path or Path(made)
        if options.data_path is None:
            write_photographs(root, options.images)
        files = [file for file in (root / "train").rglob("*") if file.is_file()]
        kilobytes = sum(file.stat().st_size for file in files) / 1000 / max(1, len(files))
        rows = measure(loaders(root, options.batch_size, options.workers, options.size, device), options.rounds)
    setting = (
        f"{len(files)} files of {kilobytes:.0f} kB on average, {options.size}x{options.size},"
        f" batch {options.batch_size}, {options.workers} workers, {device}, recipe of {RECIPE.name} without mixing"
    )
    return {"setting": setting, "rows": rows}


def benchmark_save(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the subcommand `save`: seconds that training waits for a checkpoint, and until it is on disk."""
    cfg = load_config(options.cfg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(cfg, model_options(cfg), 1000, device)
    state = TrainState.build(model, StateOptions.from_config(cfg), Precision(device.type, torch.float32), World())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    state.optimizer.step()
    pauses, totals = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        saver = Saver(Path(folder), keep=1)
        for number in range(options.rounds + 1):  # the first one warms up
            begun = time.perf_counter()
            saver.save(checkpoint_name(number), state.state_dict())
            pauses.append(time.perf_counter() - begun)
            saver.finish()
            totals.append(time.perf_counter() - begun)
        size = next(Path(folder).glob("ckpt*.pth")).stat().st_size
    figures = {
        name: {"median": statistics.median(values[1:]), "least": min(values[1:]), "most": max(values[1:])}
        for name, values in (("training waits, s", pauses), ("until it is on disk, s", totals))
    }
    per_100 = figures["training waits, s"]["median"] / (size / 1e8)
    setting = f"{options.cfg.stem} with AdamW, {size / 1e6:,.0f} MB, {device}, n = {options.rounds}"
    return {"setting": f"{setting}: {per_100:.3f} s per 100 MB", "rows": figures}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="training input")
    data.add_argument(
        "--data-path", type=Path, metavar="FOLDER", help="holds train/ and val/; default: generated files"
    )
    data.add_argument("--images", type=int, default=1024, help="files to generate (default %(default)s)")
    data.add_argument("--batch-size", type=int, default=64, help="default %(default)s")
    data.add_argument("--workers", type=int, default=2, help="loader processes (default %(default)s)")
    data.add_argument("--size", type=int, default=224, help="side of the model's images (default %(default)s)")
    data.add_argument("--rounds", type=int, default=7, help="epochs of each that count (default %(default)s)")
    data.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    save = commands.add_parser("save", help="the pause of training for a checkpoint")
    save.add_argument("--cfg", type=Path, default=RECIPE.with_name("swin_base.yaml"), help="default %(default)s")
    save.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure (default: this one)")
    save.add_argument("--rounds", type=int, default=7, help="checkpoints that count (default %(default)s)")
    save.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    options = parser.parse_args(argv)
    if options.rounds < 1 or (options.command == "data" and options.images < options.batch_size):
        parser.error("give at least one round, and images for a batch")
    try:
        if options.json:
            options.json.touch()  # before anything is measured
        run = benchmark_data if options.command == "data" else benchmark_save
        result = {**run(options), **surroundings()}
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, debug=False, speak=True)
    print(f"\n{result['setting']}\n{result['processor']}, {result['cores']} cores, {result['versions']}\n")
    if options.command == "save":
        for name, values in result["rows"].items():
            print(f"{name}: {', '.join(f'{kind} {value:.2f}' for kind, value in values.items())}")
    else:
        print(table(result["rows"]))
        result["rows"] = [asdict(row) for row in result["rows"]]
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
