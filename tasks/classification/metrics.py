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
from tasks.classification.tables import mistakes_table, per_class_table
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.training.objective import Evaluation, Table

log = logging.getLogger(__name__)


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

    def line(self) -> str:
        """Returns a log line."""
        counts = f"({self.correct1} of {self.count})"
        return f"Acc@1 {self.top1:.3f} Acc@{self.k} {self.topk:.3f} loss {self.loss:.4f} {counts}"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class AccuracyCounter:
    """Accumulates the sums of this rank; `result` reduces them across all ranks and divides once.

    Args: classes: number of classes; k is 5, or `classes` if fewer.
    """

    def __init__(self, classes: int):
        self.k = min(5, classes)
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
    """Accuracy, and the prediction for every sample.

    Args: allowed: labels that predictions are restricted to, empty for all; real: labels of ImageNet-ReaL by file name,
    or None.
    """

    def __init__(
        self,
        val: EvalLoader,
        class_names: Sequence[str],
        allowed: Sequence[int] = (),
        real: Mapping[str, Sequence[int]] | None = None,
    ):
        self._val, self._names, self._allowed, self._real = val, class_names, sorted(allowed), real
        self._counter, self._meter = AccuracyCounter(len(allowed or class_names)), RoutingMeter()
        self._collector = PredictionCollector()

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
        source = self._val.source
        tables = {
            "results": Table(
                ("top1", "topk", "k", "loss"),
                [(f"{accuracy.top1:.3f}", f"{accuracy.topk:.3f}", accuracy.k, f"{accuracy.loss:.5f}")],
            ),
            "per_class": per_class_table(predictions, self._names),
            "mistakes": mistakes_table(predictions, self._names, source),
        }
        notes = () if self._real is None else (real_line(predictions, source.name, self._real),)
        return Evaluation(
            accuracy.as_dict(),
            accuracy.line(),
            {"loss": accuracy.loss, "top1": accuracy.top1, f"top{accuracy.k}": accuracy.topk},
            samples=accuracy.count,
            notes=notes,
            tables=tables,
            pictures=prediction_pictures(predictions, self._val, self._names),
        )


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
