"""Predicts the classes of images, from the file of a model alone.

    python scripts/predict.py photo.jpg --model output/swin_tiny/default/checkpoints/best.pth
    python scripts/predict.py photos/ 'more/*.png' list.txt --model hub:swin_tiny_patch4_window7_224 --output out.csv

Prints a table, or writes one: .csv, .jsonl or .parquet by its ending. The model may be a checkpoint, which stores its
classes and preprocessing, a released model, weights in any layout with --cfg, or an exported .onnx or .pt2 file.
"""

import argparse
import csv
import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from data.loaders import EvalLoader, PipelineOptions, build_eval_loader
from data.sources.files import FileSource, find_images
from models.backbone import SwinBackbone
from scripts.open_model import ModelFile, open_model
from utils.class_words import in_words
from utils.distributed.world import World, join_world
from utils.errors import ConfigError, DataError, ResourceError, count, run_to_exit_code
from utils.evaluation.predict import predict
from utils.files import atomic_path
from utils.precision import Precision
from utils.script_parser import ScriptParser
from utils.terminal import start_logging, table_lines, track

SHOWN = 40  # rows of the table on the terminal
ENDINGS = (".csv", ".jsonl", ".parquet")
FEATURES = ("pooled", "pyramid")


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, by number and by name; none if it could not be read."""

    path: str
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def row(self, k: int) -> list[Any]:
        """Returns path, class 1, probability 1, ..., filled up to k classes."""
        pairs = [cell for pair in zip(self.classes, self.probabilities, strict=True) for cell in pair]
        return [self.path, *pairs, *[""] * (2 * k - len(pairs))]


def predictions(opened: ModelFile, paths: list[Path], options: argparse.Namespace, world: World) -> list[Prediction]:
    """Returns one prediction per image, in order."""
    batches = _batches(opened, paths, world)
    names = in_words(opened.class_names)
    k, rows = min(options.topk, len(names)), iter(paths)
    found = []
    precision = Precision.from_config(opened.cfg, world.device)
    for logits, targets in predict(opened.model, batches, precision, world):
        probabilities, classes = logits.float().softmax(1).topk(k)
        for row, best, readable in zip(probabilities.tolist(), classes.tolist(), (targets >= 0).tolist(), strict=True):
            labels = tuple(best) if readable else ()
            words = tuple(names[label] for label in labels)
            found.append(Prediction(str(next(rows)), labels, words, tuple(row[: len(labels)])))
    if not any(prediction.labels for prediction in found):
        raise _none_readable(paths)
    return found


def _none_readable(paths: list[Path]) -> DataError:
    return DataError(f"no image could be read: {paths[0]}: name images, folders, patterns or a list in a .txt file")


def _batches(opened: ModelFile, paths: list[Path], world: World) -> EvalLoader:
    pipeline = PipelineOptions.from_config(opened.cfg, opened.channels, opened.preprocessing)
    pipeline = replace(pipeline, loader=replace(pipeline.loader, on_bad="skip_any"))
    return build_eval_loader(FileSource(paths), world, pipeline)


@torch.no_grad()
def save_features(opened: ModelFile, paths: list[Path], target: Path, kind: str, world: World) -> str:
    """Writes features of all images: "pooled": (images, C), or "pyramid": (images, C, H, W) for every stage.

    Those of an image that could not be read are NaN.
    Returns: a line that says what was written. Raises: ConfigError for an exported model; DataError if no image could
    be read; ResourceError.
    """
    if not isinstance(opened.model, SwinBackbone):
        what = "an exported file" if opened.exported else type(opened.model).__name__
        raise ConfigError(f"{what} has no feature maps: --features: use a checkpoint of a Swin")
    parts: dict[str, list[np.ndarray]] = {}
    precision = Precision.from_config(opened.cfg, world.device)
    loader = _batches(opened, paths, world)
    readable = False
    for images, targets in track(loader, "computing", len(loader), "batches"):
        with precision.autocast():
            for name, values in _features(opened.model, images, kind).items():
                values = values.float()
                values[targets < 0] = float("nan")
                parts.setdefault(name, []).append(values.cpu().numpy())
        readable |= bool((targets >= 0).any())
    if not readable:
        raise _none_readable(paths)
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    everything: dict[str, Any] = {"paths": np.array([str(path) for path in paths]), **arrays}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would append its own ending
            np.savez(file, **everything)

    _write(target, write)
    return f"{target}: " + ", ".join(f"{name} {'x'.join(map(str, a.shape))}" for name, a in arrays.items())


def _features(model: SwinBackbone, images: Tensor, kind: str) -> dict[str, Tensor]:
    if kind == "pooled":
        return {"features": model.forward_head(model.forward_features(images), pre_logits=True)}
    _, maps = model.forward_intermediates(images)
    return {f"stride{info['reduction']}": each for info, each in zip(model.feature_info, maps, strict=True)}


def write_predictions(target: Path, rows: list[Prediction], k: int) -> None:
    """Writes a table; its format follows from its ending. Raises: ResourceError."""
    head = ["path", *(f"{name}_{i}" for i in range(1, k + 1) for name in ("class", "probability"))]
    if target.suffix == ".jsonl":
        lines = [{"path": r.path, "classes": r.classes, "probabilities": r.probabilities} for r in rows]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        _write(target, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))
    elif target.suffix == ".csv":
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator="\n").writerows([head, *(row.row(k) for row in rows)])
        content = buffer.getvalue()
        _write(target, lambda temporary: temporary.write_text(content, encoding="utf-8", errors="surrogateescape"))
    else:
        _write_parquet(target, head, [row.row(k) for row in rows])


def _write_parquet(target: Path, head: list[str], rows: list[list[Any]]) -> None:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as e:
        raise ConfigError(f".parquet needs the package pyarrow: --output {target}: install it, or write .csv") from e
    cells = [[None if cell == "" else cell for cell in row] for row in rows]
    columns = dict(zip(head, map(list, zip(*cells, strict=True)), strict=True))
    _write(target, lambda temporary: parquet.write_table(arrow.table(columns), temporary))


def _write(target: Path, write: Any) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            write(temporary)
    except OSError as e:
        raise ResourceError(f"cannot write the result ({e.strerror}): {target}: name another file") from e


def _run(options: argparse.Namespace) -> None:
    world = join_world(device_type=options.device)
    given = {
        "DATA.BATCH_SIZE": options.batch_size,
        "DATA.NUM_WORKERS": options.workers,
        **({"TEST.IMG_SIZE": options.size} if options.size else {}),
    }
    opened = open_model(options.model, options.cfg, [(key, value, "command line") for key, value in given.items()])
    opened.model.to(world.device)
    paths = find_images(options.images)
    if options.features:
        print(save_features(opened, paths, options.output or Path("features.npz"), options.features, world))
        return
    rows = predictions(opened, paths, options, world)
    k = min(options.topk, len(opened.class_names))
    if options.explain:
        from scripts.explain import explain

        for picture in explain(opened, paths, rows, options.explain, world):
            print(picture)
    if options.output:
        write_predictions(options.output, rows, k)
        print(f"{count(len(rows), 'image')}: {options.output}")
        return
    head = ["image", *(name for i in range(1, k + 1) for name in (f"class {i}", "prob."))]
    print("\n".join(table_lines(head, [row.row(k) for row in rows[:SHOWN]])))
    if len(rows) > SHOWN:
        print(f"... {len(rows) - SHOWN:,} more: --output FILE.csv writes all")


def _parser() -> ScriptParser:
    parser = ScriptParser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image, folder, 'pattern', or .txt file of paths")
    parser.add_argument("--model", required=True, help="checkpoint, hub:NAME, hf:OWNER/NAME, URL, .onnx or .pt2 file")
    parser.add_argument("--cfg", default="", metavar="FILE", help="recipe of weights that do not store their own")
    parser.add_argument("--topk", type=int, default=3, metavar="K", help="classes per image (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"in {', '.join(ENDINGS)}; features: .npz")
    parser.add_argument("--size", type=int, default=0, help="side of the model's input (default: as trained)")
    parser.add_argument("--batch-size", type=int, default=32, help="default %(default)s")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (default %(default)s)")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="default %(default)s")
    parser.add_argument("--features", choices=FEATURES, help="write features to --output instead of classes")
    parser.add_argument("--explain", type=Path, metavar="FOLDER", help="write a picture of what each class rests on")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    endings = (".npz",) if options.features else ENDINGS
    if options.output and options.output.suffix not in endings:
        parser.error(f"--output {options.output}: must end in {' or '.join(endings)}")
    if options.topk < 1 or options.batch_size < 1 or options.workers < 0:
        parser.error("--topk and --batch-size must be at least 1, --workers at least 0")
    start_logging(is_main=True)
    return run_to_exit_code(lambda: _run(options), options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
