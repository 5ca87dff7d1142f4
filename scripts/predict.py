"""Predicts images with any trained model, given only its file.

    python scripts/predict.py photo.jpg --model output/swin_tiny/default/checkpoints/best.pth
    python scripts/predict.py photos/ 'more/*.png' list.txt --model hub:swin_tiny_patch4_window7_224 --output out.csv
    curl <url> | python scripts/predict.py - photos.zip <another url> --model output/swin_tiny/default

Prints a table, or writes a .csv, .jsonl or .parquet file. The model is a checkpoint, which stores classes and
preprocessing, a released model, weights in any layout with --cfg, or an exported .onnx or .pt2 file. An input without
images is skipped; the exit code is then 3.
"""

import argparse
import csv
import io
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from data.loaders import EvalLoader
from data.sources.files import FileSource, FoundImages, find_images
from models.backbone import SwinBackbone
from models.registry import backbone_of
from scripts.open_model import ModelFile, open_model
from tasks.base import Row, Task
from utils.batches import stacked
from utils.distributed.world import join_world
from utils.errors import ConfigError, DataError, count, one_line, run_to_exit_code
from utils.files import short_stem, writing
from utils.script_parser import ScriptParser
from utils.terminal import say, start_logging, table_lines, track
from utils.training.evaluate import predict

log = logging.getLogger(__name__)
SHOWN = 40  # rows printed to the terminal
ENDINGS = (".csv", ".json", ".jsonl", ".parquet")
FEATURES = ("pooled", "pyramid")


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image: lines of the table, and the same for JSON; empty if the image could not be read."""

    path: str
    lines: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any]


def predictions(opened: ModelFile, images: FoundImages, limit: int) -> list[Prediction]:
    """Returns one prediction per image, in order. Args: limit: entries per image, such as classes.

    Raises: DataError if no image could be read; ConfigError if the task makes no predictions.
    """
    task, found = opened.task, dict[int, Row]()
    _check_predicts(task)
    for outputs, batch in predict(opened.model, _batches(opened, images), task.forward, task.world):
        found |= {row.sample: row for row in task.predictions(outputs, batch, opened.info, limit)}
    if not found:
        raise _none_readable(images)
    first = _record(next(iter(found.values())))
    blank: dict[str, Any] = dict.fromkeys(first)
    rows = [found.get(number) for number in range(len(images.paths))]
    return [
        Prediction(images.name(path), [row.cells, *row.others] if row else [{}], _record(row) if row else blank)
        for path, row in zip(images.paths, rows, strict=True)
    ]


def _record(row: Row) -> Mapping[str, Any]:
    return row.cells if row.record is None else row.record


def save_pictures(opened: ModelFile, images: FoundImages, folder: Path, limit: int, kind: str = "picture") -> int:
    """Writes the task's picture of each prediction as a PNG file; returns the number of files.

    Args: kind: the field of `Row` that draws it: picture, or label_map.
    Raises: ConfigError if the task cannot predict or draw; ResourceError.
    """
    task, paths, count, read = opened.task, images.paths, 0, 0
    option = "--pictures" if kind == "picture" else "--label-maps"
    _check_predicts(task)
    for outputs, batch in predict(opened.model, _batches(opened, images), task.forward, task.world):
        for row in task.predictions(outputs, batch, opened.info, limit):
            read += 1
            draw = getattr(row, kind)
            if draw is not None:
                name = f"{row.sample:0{len(str(len(paths) - 1))}}_{short_stem(paths[row.sample])}.png"
                with writing(folder / name, option) as temporary:
                    draw().save(temporary, "PNG")
                count += 1
    if read and not count:
        raise ConfigError(option, f"TASK {task.name} cannot draw its predictions", "use --explain or --output")
    return count


def _check_predicts(task: Task) -> None:
    if not task.predicts:
        raise ConfigError("--model", f"TASK {task.name} makes no predictions", "use a model for a task that does")


def _none_readable(images: FoundImages) -> DataError:
    remedy = "name images, folders, patterns or a .txt file of paths"
    return DataError(images.name(images.paths[0]), "no image could be read", remedy)


def _batches(opened: ModelFile, images: FoundImages) -> EvalLoader:
    return opened.task.loader(FileSource(images.paths, images.names), opened.info, on_bad="skip_any")


@torch.no_grad()
def save_features(opened: ModelFile, images: FoundImages, target: Path, kind: str) -> str:
    """Writes features of all images: "pooled": (images, C), or "pyramid": (images, C, H, W) for every stage.

    Features of unreadable images are NaN.
    Returns: a log line. Raises: ConfigError for an exported model, or a task whose images differ in size; DataError if
    no image could be read; ResourceError.
    """
    backbone = backbone_of(opened.model)
    if backbone is None:
        what = "an exported file" if opened.exported else type(opened.model).__name__
        raise ConfigError("--features", f"{what} has no feature maps", "use a Swin checkpoint")
    arrays: dict[str, np.ndarray] = {}
    loader = _batches(opened, images)
    for batch in track(loader, "computing", len(loader), "batches"):
        if not isinstance(batch.images, Tensor):
            raise ConfigError("--features", f"images of TASK {opened.task.name} differ in size", "use a classifier")
        with opened.task.precision.autocast():
            computed = _features(backbone, stacked(batch), kind)
        for name, values in computed.items():
            if name not in arrays:
                arrays[name] = np.full((len(images.paths), *values.shape[1:]), np.nan, np.float32)
            arrays[name][list(batch.samples)] = values.float().cpu().numpy()
    if not arrays:
        raise _none_readable(images)
    everything: dict[str, Any] = {"paths": np.array(list(map(images.name, images.paths))), **arrays}
    # given a name, numpy would append its suffix
    with writing(target, "--output") as temporary, temporary.open("wb") as file:
        np.savez(file, **everything)
    return f"{target}: " + ", ".join(f"{name} {'x'.join(map(str, a.shape))}" for name, a in arrays.items())


def _features(model: SwinBackbone, images: Tensor, kind: str) -> dict[str, Tensor]:
    if kind == "pooled":
        return {"features": model.forward_head(model.forward_features(images), pre_logits=True)}
    _, maps = model.forward_intermediates(images)
    return {f"stride{info['reduction']}": each for info, each in zip(model.feature_info, maps, strict=True)}


def write_predictions(target: Path, rows: list[Prediction]) -> None:
    """Writes a table in the format of the suffix. Raises: ConfigError, ResourceError."""
    head, table = _table(rows)
    if target.suffix == ".parquet":
        return _write_parquet(target, head, table)
    text = io.StringIO(newline="")
    if target.suffix == ".json":
        json.dump(_objects(rows, target), text)
    elif target.suffix == ".csv":
        rounded = [[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in table]
        csv.writer(text, lineterminator="\n").writerows([head, *rounded])
    else:
        text.writelines(json.dumps({"path": r.path, **r.record}, ensure_ascii=False) + "\n" for r in rows)
    with writing(target, "--output") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


def _objects(rows: list[Prediction], target: Path) -> list[dict[str, Any]]:
    """Returns the objects of all images in the format of COCO's results; images are numbered from 1.

    Raises: ConfigError if the task finds no objects.
    """
    if not all("objects" in row.record for row in rows):
        raise ConfigError("--output", f"{target}: COCO's format is only for detected objects", "write a .jsonl file")
    return [
        {"image_id": number, "file_name": row.path, **each}
        for number, row in enumerate(rows, start=1)
        for each in row.record["objects"] or ()
    ]


def _table(rows: list[Prediction]) -> tuple[list[str], list[list[Any]]]:
    lines = [(row.path, line) for row in rows for line in row.lines]
    names = list(dict.fromkeys(name for _, line in lines for name in line))
    return ["path", *names], [[path, *(line.get(name, "") for name in names)] for path, line in lines]


def _write_parquet(target: Path, head: list[str], rows: list[list[Any]]) -> None:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as e:
        raise ConfigError("--output", f"{target} requires pyarrow", "pip install pyarrow, or write .csv") from e
    cells = [[None if cell == "" else cell for cell in row] for row in rows]
    columns = dict(zip(head, map(list, zip(*cells, strict=True)), strict=True))
    with writing(target, "--output") as temporary:
        parquet.write_table(arrow.table(columns), temporary)


def _run(options: argparse.Namespace) -> None:
    world = join_world(device_type=options.device)
    given = [
        ("DATA.BATCH_SIZE", options.batch_size, "--batch-size"),
        ("DATA.NUM_WORKERS", options.workers, "--workers"),
        *([("TEST.THRESHOLD", options.threshold, "--threshold")] if options.threshold is not None else []),
    ]
    given += [("TEST.IMG_SIZE", options.size, "--size")] if options.size else []
    opened = open_model(options.model, options.cfg, given, world)
    with tempfile.TemporaryDirectory(prefix="images-") as copies:
        images = find_images(options.images, Path(copies))
        for error in images.errors:
            log.warning("%s", one_line(error))
        _predict(opened, images, options)
    if images.errors:
        skipped = f"{count(len(images.errors), 'name')} of {len(options.images)} skipped; the rest were processed"
        raise DataError(images.errors[0].subject, images.errors[0].problem, skipped)


def _predict(opened: ModelFile, images: FoundImages, options: argparse.Namespace) -> None:
    limit = options.topk or opened.task.entries
    if options.features:
        say(save_features(opened, images, options.output, options.features))
        return
    if options.explain:
        from scripts.explain import explain

        source = FileSource(images.paths, images.names)
        for picture in explain(opened, source, options.explain, options.chosen):
            say(picture)
    if options.pictures:
        drawn = save_pictures(opened, images, options.pictures, limit)
        say(f"{count(drawn, 'picture')}: {options.pictures}")
    if options.label_maps:
        drawn = save_pictures(opened, images, options.label_maps, limit, "label_map")
        say(f"{count(drawn, 'label map')}: {options.label_maps}")
    rows = predictions(opened, images, limit)
    if options.output:
        write_predictions(options.output, rows)
        say(f"{count(len(rows), 'image')}: {options.output}")
        return
    head, table = _table(rows)
    say(*table_lines(["image", *head[1:]], table[:SHOWN]))
    if len(table) > SHOWN:
        say(f"... {len(table) - SHOWN:,} more; --output FILE.csv writes all")


def _parser() -> ScriptParser:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image, folder, 'pattern', .txt list, .zip, .tar, URL, - (stdin)"
    )
    parser.add_argument("--model", required=True, help="checkpoint, hub:NAME, hf:OWNER/NAME, URL, .onnx or .pt2 file")
    parser.add_argument("--cfg", default="", metavar="FILE", help="recipe, for weights that do not store one")
    parser.add_argument(
        "--topk", type=int, default=0, metavar="K", help="entries per image (default: 3 classes, 100 objects)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"{', '.join(ENDINGS)}; features: .npz")
    parser.add_argument("--threshold", type=float, help="probability below which the answer is unknown")
    parser.add_argument("--size", type=int, default=0, help="input size in pixels (default: as trained)")
    parser.add_argument("--batch-size", type=int, default=32, help="default %(default)s")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (default %(default)s)")
    parser.add_device()
    parser.add_argument("--features", choices=FEATURES, help="write features to --output instead of classes")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw each prediction, if the task supports it")
    parser.add_argument("--label-maps", type=Path, metavar="FOLDER", help="write the class of each pixel, as PNG files")
    parser.add_argument("--explain", type=Path, metavar="FOLDER", help="write a picture that explains each prediction")
    parser.add_argument("--class", dest="chosen", default="", metavar="NAME", help="explain a class of your choice")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    endings = (".npz",) if options.features else ENDINGS
    if options.output and options.output.suffix not in endings:
        parser.error(f"--output {options.output}: must end in {' or '.join(endings)}")
    if options.features and not options.output:
        parser.error(f"argument --features: requires --output FILE{endings[0]}")
    if options.topk < 0 or options.batch_size < 1 or options.workers < 0:
        parser.error("--topk and --workers must be at least 0, --batch-size at least 1")
    if options.chosen and not options.explain:
        parser.error("argument --class: requires --explain FOLDER")
    start_logging(is_main=True)
    return run_to_exit_code(lambda: _run(options), options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
