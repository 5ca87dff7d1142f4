"""What an evaluation tells beyond top-1 and top-5: other labels, some of the classes, each class, a table of files."""

import csv
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils.distributed import World
from utils.errors import ResourceError
from utils.evaluation.metrics import EvalResult
from utils.precision import Precision
from utils.profiling import count_parameters
from utils.training.loop import evaluate

NOT_COUNTED = -1


class Samples(Protocol):
    """What the reports need of the evaluated data (data/sources/open.py)."""

    @property
    def class_names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def label(self, index: int) -> int: ...
    def name(self, index: int) -> str: ...


class Restricted(nn.Module):
    """A classifier whose other classes can never win."""

    def __init__(self, model: nn.Module, allowed: Sequence[int]):
        super().__init__()
        self.model = model
        self.register_buffer("allowed", torch.tensor(sorted(allowed)))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        closed = torch.full_like(logits, float("-inf"))
        return closed.index_copy(1, self.allowed, logits.index_select(1, self.allowed))  # type: ignore[arg-type]


class Recorder(nn.Module):
    """Passes logits on and keeps the best class of every sample, in the order in which they come."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.best: list[Tensor] = []
        self.pixels = 0

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Pass batches on, and forget what was answered to those samples that do not count."""
        for images, targets in batches:
            yield images, targets
            self.best[-1] = torch.where(targets.cpu() < 0, NOT_COUNTED, self.best[-1])

    def forward(self, images: Tensor) -> Tensor:
        logits, self.pixels = self.model(images), images.shape[-1]
        self.best.append(logits.argmax(1).cpu())
        return logits


@dataclass(frozen=True)
class Assessment:
    """Result of one file: counts, images/s of the evaluation, side of an image, predicted class of every sample
    (`NOT_COUNTED` for one that could not be read)."""

    result: EvalResult
    images_per_s: float
    parameters: int
    pixels: int
    predicted: list[int]


def assess(
    model: nn.Module,
    batches: Iterable[Any],
    samples: Samples,
    allowed: Sequence[int],
    precision: Precision,
    world: World,
) -> Assessment:
    """Evaluate, with predictions kept. Args: allowed: the classes that may win, empty for all."""
    recorder = Recorder(Restricted(model, allowed).to(world.device) if allowed else model)
    begun = time.perf_counter()
    result = evaluate(recorder, recorder.watch(batches), len(allowed or samples.class_names), precision, world)
    seconds = time.perf_counter() - begun
    own = torch.cat(recorder.best) if recorder.best else torch.zeros(0, dtype=torch.long)
    predicted = _in_order(own, len(samples), world)
    return Assessment(result, result.count / seconds, count_parameters(model), recorder.pixels, predicted)


def _in_order(own: Tensor, count: int, world: World) -> list[int]:
    """Predictions of all processes, in the order of the samples: process r has samples r, r + size, ..."""
    padded = torch.full((-(-count // world.size),), float("nan"), device=world.device)
    padded[: len(own)] = own.to(world.device, torch.float32)
    return [int(value) for value in world.gather(padded).T.flatten().tolist() if not math.isnan(value)]


def report(assessment: Assessment, samples: Samples, real: Mapping[str, Sequence[int]] | None) -> list[str]:
    """Lines for the log. Args: real: the labels of ImageNet-ReaL, None where they were not asked for."""
    lines = [f"{assessment.result.line()}, {assessment.images_per_s:.1f} images/s"]
    if real is not None:
        lines.append(real_accuracy(assessment.predicted, [samples.name(i) for i in range(len(samples))], real))
    return lines


def write_tables(rows: Sequence[tuple[str, Assessment]], samples: Samples, results: str, per_class: str) -> None:
    """The CSV files that TEST.RESULTS and TEST.PER_CLASS name (the latter of the last file). Raises: ResourceError."""
    if results:
        write_results(Path(results), rows)
    if per_class:
        labels = [samples.label(i) for i in range(len(samples))]
        write_per_class(Path(per_class), rows[-1][1].predicted, labels, samples.class_names)


def real_accuracy(predicted: Sequence[int], names: Sequence[str], real: Mapping[str, Sequence[int]]) -> str:
    """Accuracy against several valid labels an image (ImageNet-ReaL, arXiv 2006.07159), for the log.

    Args: names: files of the samples; real: file name -> valid labels; images without any do not count.
    """
    counted = [(p, Path(n).name) for p, n in zip(predicted, names, strict=True) if p != NOT_COUNTED]
    known = [(p, real[name]) for p, name in counted if real.get(name)]
    if not known:
        return "ReaL: none of the files is an ImageNet validation image (ILSVRC2012_val_00000001.JPEG, ...)"
    correct = sum(p in labels for p, labels in known)
    return f" * ReaL Acc@1 {100 * correct / len(known):.3f} ({correct} of {len(known)})"


def write_per_class(path: Path, predicted: Sequence[int], labels: Sequence[int], class_names: Sequence[str]) -> None:
    """CSV with a row for each class that has samples: name, samples, correct, top-1, most frequent wrong answer."""
    rows = []
    for label, name in enumerate(class_names):
        answers = [p for p, own in zip(predicted, labels, strict=True) if own == label and p != NOT_COUNTED]
        if not answers:
            continue
        wrong = [p for p in answers if p != label]
        mistaken = class_names[max(set(wrong), key=wrong.count)] if wrong else ""
        correct = len(answers) - len(wrong)
        rows.append([name, len(answers), correct, f"{100 * correct / len(answers):.2f}", mistaken])
    _write_csv(path, ["class", "samples", "correct", "top1", "mostly_mistaken_for"], rows)


def write_results(path: Path, rows: Sequence[tuple[str, Assessment]]) -> None:
    """CSV with a row for each evaluated file."""
    head = ["name", "top1", "topk", "k", "loss", "samples", "images_per_s", "parameters", "size"]
    table = []
    for name, a in rows:
        r = a.result
        accuracy = [f"{r.top1:.3f}", f"{r.topk:.3f}", r.k, f"{r.loss:.5f}", r.count]
        table.append([name, *accuracy, f"{a.images_per_s:.1f}", a.parameters, a.pixels])
    _write_csv(path, head, table)


def _write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])
    except OSError as e:
        raise ResourceError(f"cannot write a table ({e.strerror}): {path}: name another file") from e
