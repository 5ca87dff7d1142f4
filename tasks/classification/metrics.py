"""Accuracy and loss, reduced as sums and divided once, and the classification evaluator."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.loaders import EvalLoader
from tasks.classification.expert_load import RoutingMeter, warn_of_drops
from tasks.classification.pictures import prediction_pictures
from tasks.classification.predictions import PredictionCollector, Predictions
from tasks.classification.scores import (
    calibration_error,
    confidence_intervals,
    fitted_temperature,
    interval_line,
    macro_scores,
    ranking_score,
)
from tasks.classification.tables import mistakes_table, per_class_table
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.training.objective import Evaluation, Table

log = logging.getLogger(__name__)


TOP_K = 5
KEPT = 1 << 24  # logits of a whole evaluation that are kept, for ranking and calibration
# names of metrics in the log
SHORT = {"top1": "Acc@1", "balanced_accuracy": "balanced", "macro_f1": "F1", "auroc": "AUROC"}


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-k accuracy in percent, mean cross-entropy, and the underlying counts."""

    top1: float
    topk: float
    loss: float
    k: int
    correct1: int
    correctk: int
    count: int

    def line(self, classes: int) -> str:
        """Returns a log line, without the top-k accuracy that is 100% for few classes."""
        top = f" Acc@{self.k} {self.topk:.3f}" if classes > TOP_K else ""
        return f"Acc@1 {self.top1:.3f}{top} loss {self.loss:.4f} ({self.correct1} of {self.count})"

    def as_dict(self, classes: int) -> dict[str, float]:
        kept = asdict(self)
        return kept if classes > TOP_K else {name: kept[name] for name in ("top1", "loss", "correct1", "count")}


class AccuracyCounter:
    """Accumulates the sums of this rank; `result` reduces them across all ranks and divides once.

    Args: classes: number of classes; k is 5, or `classes` if fewer.
    """

    def __init__(self, classes: int):
        self.k = min(TOP_K, classes)
        self._sums: Tensor | None = None

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch. Args: logits (B, classes) of any dtype; targets int64 (B,)."""
        sums = accuracy_sums(logits, targets, self.k)
        self._sums = sums if self._sums is None else self._sums + sums

    def result(self, world: World) -> Accuracy:
        """Reduces across all ranks. Raises: DataError if no sample was counted."""
        own = torch.zeros(4, device=world.device) if self._sums is None else self._sums  # more ranks than samples
        return accuracy_of(world.gather(own).sum(0), self.k)


def accuracy_sums(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Returns correct at 1, correct at k, summed cross-entropy and count of a batch: (4,).

    An image with a NaN logit counts as wrong.
    Args: logits (B, classes) of any dtype; targets int64 (B,); 1 <= k <= classes.
    """
    logits = logits.float()
    ranked = (logits.topk(k, dim=1).indices == targets[:, None]) & ~logits.isnan().any(1, keepdim=True)
    loss = F.cross_entropy(logits, targets, reduction="sum")
    # float64 keeps counts and sums exact over a dataset; MPS does not support it
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    count = torch.tensor(len(targets), device=logits.device)
    return torch.stack([part.to(dtype) for part in (ranked[:, 0].sum(), ranked.sum(), loss, count)])


def accuracy_of(sums: Tensor, k: int) -> Accuracy:
    """Divides the sums over the whole dataset. Raises: DataError if it has no readable sample."""
    correct1, correctk, loss, count = sums.tolist()
    if count == 0:
        raise DataError("DATA.DATA_PATH", "no validation image could be read", "run scripts/prepare_data.py check")
    return Accuracy(
        top1=100.0 * correct1 / count,
        topk=100.0 * correctk / count,
        loss=loss / count,
        k=k,
        correct1=int(correct1),
        correctk=int(correctk),
        count=int(count),
    )


class ClassificationEvaluator:
    """Accuracy, scores per class, and the prediction for every sample.

    Args: allowed: labels that predictions are restricted to, empty for all; real: labels of ImageNet-ReaL by file name,
    or None; final: whether weights files are evaluated, with confidence intervals; keeps_all: keep the probabilities of
    any number of samples.
    """

    def __init__(
        self,
        val: EvalLoader,
        class_names: Sequence[str],
        allowed: Sequence[int] = (),
        real: Mapping[str, Sequence[int]] | None = None,
        final: bool = False,
        keeps_all: bool = False,
    ):
        self._val, self._names, self._allowed, self._real = val, class_names, sorted(allowed), real
        self._counter, self._meter, self._final = AccuracyCounter(len(allowed or class_names)), RoutingMeter(), final
        few = len(val.source) * len(class_names) <= KEPT
        self._collector = PredictionCollector(not allowed and (few or keeps_all))

    def update(self, outputs: Any, batch: Batch) -> None:
        logits = restrict(outputs.logits, self._allowed) if self._allowed else outputs.logits
        self._counter.add(logits, batch.targets)
        self._collector.add(logits, batch)
        self._meter.add(outputs.routing)

    def compute(self, world: World) -> Evaluation:
        warn_of_drops(self._meter.result(world))
        accuracy, predictions = self._counter.result(world), self._collector.result(world)
        if invalid := int((predictions.predicted < 0).sum()):
            log.warning("the logits of %d of %d images are NaN: they count as wrong", invalid, accuracy.count)
        source, classes = self._val.source, len(self._allowed or self._names)
        scores = macro_scores(predictions, len(self._names)) | self._calibrated(predictions)
        top = {f"top{accuracy.k}": accuracy.topk} if classes > TOP_K else {}
        temperature = fitted_temperature(predictions)
        tables = {
            "results": _results_table(accuracy, scores, classes),
            "per_class": per_class_table(predictions, self._names),
            "mistakes": mistakes_table(predictions, self._names, source),
        }
        words = [f"{SHORT[name]} {scores[name]:.2f}" for name in ("balanced_accuracy", "macro_f1")]
        return Evaluation(
            {**accuracy.as_dict(classes), **scores},
            f"{accuracy.line(classes)}, {', '.join(words)}",
            {"loss": accuracy.loss, "top1": accuracy.top1, **top, **scores},
            samples=accuracy.count,
            notes=self._notes(predictions),
            tables=tables,
            pictures=prediction_pictures(predictions, self._val, self._names, temperature),
            arrays=lambda: self._arrays(predictions),
            stored={
                "per_class": predictions.class_counts(len(self._names)),
                **({} if temperature is None else {"calibration": {"temperature": temperature}}),
            },
        )

    def _arrays(self, predictions: Predictions) -> Mapping[str, Any]:
        if predictions.logits is None:
            return {}
        return {
            "path": [self._val.source.name(i) for i in predictions.samples.tolist()],
            "label": predictions.labels.numpy(),
            "probabilities": predictions.logits.softmax(1).numpy(),
            "class_names": list(self._names),
        }

    def _calibrated(self, predictions: Predictions) -> dict[str, float]:
        """Returns the metrics that need the logits of all samples."""
        logits = predictions.logits
        if logits is None:
            return {}
        error = calibration_error(predictions) if torch.isfinite(logits).all() else float("nan")
        return {"auroc": ranking_score(predictions), "ece": error}

    def _notes(self, predictions: Predictions) -> list[str]:
        if not self._final:
            return []
        notes = list(interval_line(confidence_intervals(predictions, len(self._names)), SHORT))
        if self._real is not None:
            notes.append(real_line(predictions, self._val.source.name, self._real))
        return notes


def _results_table(accuracy: Accuracy, scores: Mapping[str, float], classes: int) -> Table:
    cells: dict[str, Any] = {"top1": f"{accuracy.top1:.3f}"}
    if classes > TOP_K:
        cells |= {"topk": f"{accuracy.topk:.3f}", "k": accuracy.k}
    cells |= {"loss": f"{accuracy.loss:.5f}", **{name: f"{value:.3f}" for name, value in scores.items()}}
    return Table(list(cells), [list(cells.values())])


def restrict(logits: Tensor, allowed: Sequence[int]) -> Tensor:
    """Sets the logits (B, classes) of all classes but `allowed` to minus infinity."""
    index = torch.tensor(allowed, device=logits.device)
    return torch.full_like(logits, float("-inf")).index_copy(1, index, logits.index_select(1, index))


def real_line(predictions: Predictions, name: Any, real: Mapping[str, Sequence[int]]) -> str:
    """Returns a log line with the accuracy against several valid labels per image (ImageNet-ReaL, arXiv 2006.07159).

    Args: name: maps the index of a sample to its file; real: file name -> valid labels; images without any are skipped.
    """
    pairs = zip(predictions.samples.tolist(), predictions.predicted.tolist(), strict=True)
    known = [(predicted, real[file]) for i, predicted in pairs if real.get(file := Path(name(i)).name)]
    if not known:
        return "ReaL: no file is an ImageNet validation image (ILSVRC2012_val_00000001.JPEG, ...)"
    correct = sum(predicted in labels for predicted, labels in known)
    return f"ReaL Acc@1 {100 * correct / len(known):.3f} ({correct} of {len(known)})"
