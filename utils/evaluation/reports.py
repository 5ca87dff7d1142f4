"""Evaluation of files beyond top-1 and top-5: ImageNet-ReaL, subsets of classes, tables per class and per file."""

import csv
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.checkpoints.downloads import newest_in
from utils.class_words import in_words
from utils.cost import count_parameters
from utils.distributed.world import World
from utils.errors import ResourceError
from utils.evaluation.answers import NOT_COUNTED, AnswerCollector, Answers
from utils.evaluation.metrics import Accuracy, AccuracyCounter
from utils.evaluation.predict import predict, restrict
from utils.evaluation.routing import RoutingMeter, warn_of_drops
from utils.files import write_text
from utils.precision import Precision
from utils.preprocessing import Size
from utils.terminal import log_lines


@dataclass(frozen=True)
class ReportOptions:
    """`files` to evaluate; `classes` that may win (a file, "present", or "" for all); `real`: also against
    ImageNet-ReaL; `per_class` and `results`: CSV files to write, "" for none."""

    files: tuple[str, ...]
    classes: str
    real: bool
    per_class: str
    results: str

    @staticmethod
    def from_config(cfg: CfgNode) -> "ReportOptions":
        named = (cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED).split(",")
        files = tuple(name.strip() for name in named if name.strip())
        files = tuple(str(newest_in(Path(name))) if Path(name).is_dir() else name for name in files)
        return ReportOptions(files, cfg.TEST.CLASSES, cfg.TEST.REAL, cfg.TEST.PER_CLASS, cfg.TEST.RESULTS)


@dataclass(frozen=True)
class Assessment:
    """The evaluation of one file: accuracy, images/s, parameters, image size in pixels, and the answer to every
    sample."""

    accuracy: Accuracy
    images_per_s: float
    parameters: int
    size: Size
    answers: Answers

    def line(self) -> str:
        """Returns a log line."""
        return f"{self.accuracy.line()}, {self.images_per_s:.1f} images/s"


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated: class names, a function that names the file of a sample, and the image size."""

    class_names: Sequence[str]
    name: Callable[[int], str]
    size: Size


def assess(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    samples: Evaluated,
    *,
    allowed: Sequence[int],
    precision: Precision,
    world: World,
) -> Assessment:
    """Evaluates and keeps the answers. Args: allowed: labels that may win, empty for all."""
    chosen = torch.tensor(sorted(allowed), device=world.device)
    counter, collector = AccuracyCounter(len(allowed or samples.class_names)), AnswerCollector()
    meter = RoutingMeter(model)
    begun = time.perf_counter()
    for logits, targets in predict(model, batches, precision, world):
        logits = restrict(logits, chosen) if allowed else logits
        counter.add(logits, targets)
        collector.add(logits, targets)
        meter.add()
    warn_of_drops(meter.result(world))
    accuracy = counter.result(world)
    seconds = time.perf_counter() - begun
    answers = collector.result(world)
    return Assessment(accuracy, accuracy.count / seconds, count_parameters(model), samples.size, answers)


def real_accuracy(answers: Answers, samples: Evaluated, real: Mapping[str, Sequence[int]]) -> str:
    """Returns a log line with the accuracy against several valid labels per image (ImageNet-ReaL, arXiv 2006.07159).

    Args: real: file name -> valid labels; images without any are left out.
    """
    pairs = enumerate(zip(answers.labels.tolist(), answers.predicted.tolist(), strict=True))
    counted = [(p, Path(samples.name(i)).name) for i, (label, p) in pairs if label != NOT_COUNTED]
    known = [(p, real[name]) for p, name in counted if real.get(name)]
    if not known:
        return "ReaL: none of the files is an ImageNet validation image (ILSVRC2012_val_00000001.JPEG, ...)"
    correct = sum(p in labels for p, labels in known)
    return f"ReaL Acc@1 {100 * correct / len(known):.3f} ({correct} of {len(known)})"


def report(
    rows: Sequence[tuple[str, Assessment]],
    samples: Evaluated,
    options: ReportOptions,
    real: Mapping[str, Sequence[int]] | None,
    world: World,
) -> None:
    """Logs the last of the evaluated files and writes the tables that were asked for.

    Args: rows: name and assessment of every file so far; real: labels of ImageNet-ReaL, None to leave them out.
    Raises: ResourceError if a table cannot be written.
    """
    last = rows[-1][1]
    log_lines([last.line(), *([real_accuracy(last.answers, samples, real)] if real is not None else [])])
    if not world.is_main:
        return
    if options.results:
        write_results(Path(options.results), rows)
    if options.per_class:
        write_per_class(Path(options.per_class), last.answers, samples.class_names)


def write_per_class(path: Path, answers: Answers, class_names: Sequence[str]) -> None:
    """Writes a row for each class that has samples: name, samples, correct, top-1, most frequent wrong answer.

    Where class names are synsets of ImageNet, `words` says what they are.
    """
    words, rows = in_words(class_names), []
    for score in answers.per_class(len(class_names)):
        other = "" if score.mistaken_for is None else class_names[score.mistaken_for]
        rows.append([class_names[score.label], score.samples, score.correct, f"{score.top1:.2f}", other])
        rows[-1] += [words[score.label]] if words != tuple(class_names) else []
    head = ["class", "samples", "correct", "top1", "mostly_mistaken_for"]
    _write_csv(path, head + (["words"] if words != tuple(class_names) else []), rows)


def write_results(path: Path, rows: Sequence[tuple[str, Assessment]]) -> None:
    """Writes a row for each evaluated file."""
    head = ["name", "top1", "topk", "k", "loss", "samples", "images_per_s", "parameters", "size"]
    table = []
    for name, a in rows:
        r = a.accuracy
        accuracy = [f"{r.top1:.3f}", f"{r.topk:.3f}", r.k, f"{r.loss:.5f}", r.count]
        size = a.size[0] if a.size[0] == a.size[1] else f"{a.size[0]}x{a.size[1]}"
        table.append([name, *accuracy, f"{a.images_per_s:.1f}", a.parameters, size])
    _write_csv(path, head, table)


def _write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text.getvalue())
    except OSError as e:
        raise ResourceError(f"cannot write a table ({e.strerror}): {path}: name another file") from e
