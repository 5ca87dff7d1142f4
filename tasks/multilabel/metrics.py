"""Metrics of images with several labels, by scikit-learn, in percent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.loaders import EvalLoader
from tasks.classification.expert_load import RoutingMeter, warn_of_drops
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.training.objective import Evaluation, Table

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """One entry per sample in dataset order: `logits` and `targets` float64 (N, classes)."""

    samples: Tensor
    logits: Tensor
    targets: Tensor

    @property
    def probabilities(self) -> Array:
        return self.logits.sigmoid().numpy()

    @property
    def truth(self) -> NDArray[np.int64]:
        return self.targets.long().numpy()


class ScoreCollector:
    """Collects the logits and targets of this rank; `result` gathers them from all ranks."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._own: list[Tensor] = []

    def add(self, logits: Tensor, batch: Batch) -> None:
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        samples = torch.tensor(batch.samples, device=logits.device)[:, None]
        self._own.append(torch.cat([samples.to(dtype), logits.to(dtype), batch.targets.to(dtype)], dim=1))

    def result(self, world: World) -> Scores:
        """Returns the scores of all samples. A collective operation. Raises: DataError if there are none."""
        width = 1 + 2 * self._classes
        rows = world.gather_rows(torch.cat(self._own) if self._own else torch.zeros(0, width, device=world.device))
        if not len(rows):
            raise DataError("DATA.DATA_PATH", "no validation image could be read", "run scripts/prepare_data.py check")
        rows = rows[rows[:, 0].argsort()]
        return Scores(rows[:, 0].long(), rows[:, 1 : 1 + self._classes], rows[:, 1 + self._classes :])


def average_precisions(scores: Scores) -> Array:
    """Returns the average precision of each class in percent, NaN for a class without positive samples."""
    from sklearn.metrics import average_precision_score

    truth, probabilities = scores.truth, scores.probabilities
    return np.array(
        [
            100 * average_precision_score(own, values) if own.any() else np.nan
            for own, values in zip(truth.T, probabilities.T, strict=True)
        ]
    )


def best_thresholds(scores: Scores) -> Array:
    """Returns for each class the probability from which on predicting it has the highest F1; 0.5 for a class without
    positive samples."""
    from sklearn.metrics import precision_recall_curve

    found = []
    for own, values in zip(scores.truth.T, scores.probabilities.T, strict=True):
        if not own.any():
            found.append(0.5)
            continue
        precision, recall, thresholds = precision_recall_curve(own, values)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(np.argmax(f1[:-1]))
        below = values[values < thresholds[best]]
        # halfway to the next lower value: the threshold itself would depend on rounding
        found.append((thresholds[best] + (below.max() if len(below) else 0.0)) / 2)
    return np.array(found)


def set_scores(scores: Scores, thresholds: Array) -> dict[str, float]:
    """Returns macro F1 (over the classes with positive samples), micro F1 and the share of images whose labels are all
    right, when a class is predicted from its threshold on."""
    from sklearn.metrics import accuracy_score, f1_score

    truth, predicted = scores.truth, (scores.probabilities >= thresholds).astype(np.int64)
    present = truth.any(axis=0)
    macro = f1_score(truth[:, present], predicted[:, present], average="macro", zero_division=0) if present.any() else 0
    return {
        "f1_macro": 100 * float(macro),
        "f1_micro": 100 * float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "exact_match": 100 * float(accuracy_score(truth, predicted)),
    }


def set_counts(scores: Scores, thresholds: Array) -> dict[str, list[int]]:
    """Returns, per class, the positive samples, the correct ones among them and the predictions: plain values to store
    with the weights."""
    truth, predicted = scores.truth, (scores.probabilities >= thresholds).astype(np.int64)
    counted = {"samples": truth, "correct": truth * predicted, "predicted": predicted}
    return {name: own.sum(axis=0).tolist() for name, own in counted.items()}


def per_class_table(scores: Scores, thresholds: Array, class_names: Sequence[str], precisions: Array) -> Table:
    """Returns a row per class: positive samples, AP, and precision, recall and F1 at its threshold."""
    from sklearn.metrics import precision_recall_fscore_support

    truth, predicted = scores.truth, (scores.probabilities >= thresholds).astype(np.int64)
    found = precision_recall_fscore_support(truth, predicted, average=None, zero_division=0)
    rows = []
    for label, name in enumerate(class_names):
        ap = "" if np.isnan(precisions[label]) else f"{precisions[label]:.2f}"
        more = [f"{100 * found[i][label]:.2f}" for i in range(3)]
        rows.append([name, int(truth[:, label].sum()), ap, *more, f"{thresholds[label]:.4f}"])
    return Table(["class", "positives", "ap", "precision", "recall", "f1", "threshold"], rows)


class MultiLabelEvaluator:
    """mAP, F1 and exact matches; tunes thresholds.

    Args: thresholds: per class, stored with the weights; None: 0.5.
    """

    def __init__(self, val: EvalLoader, class_names: Sequence[str], thresholds: Sequence[float] | None = None):
        self._val, self._names = val, class_names
        self._given = None if thresholds is None or len(thresholds) != len(class_names) else np.array(thresholds)
        self._collector, self._meter = ScoreCollector(len(class_names)), RoutingMeter()

    def update(self, outputs: Any, batch: Batch) -> None:
        self._collector.add(outputs.logits, batch)
        self._meter.add(outputs.routing)

    def compute(self, world: World) -> Evaluation:
        warn_of_drops(self._meter.result(world))
        scores = self._collector.result(world)
        loss = float(F.binary_cross_entropy_with_logits(scores.logits, scores.targets))
        if scores.logits.isnan().any():
            return Evaluation(self._undefined(loss), f"loss {loss:.4f}, logits are NaN", samples=len(scores.samples))
        precisions, tuned = average_precisions(scores), best_thresholds(scores)
        used = np.full(len(self._names), 0.5) if self._given is None else self._given
        known = precisions[~np.isnan(precisions)]
        metrics: dict[str, float] = {"map": float(known.mean()) if len(known) else float("nan")}
        metrics |= {**set_scores(scores, used), "loss": loss}
        metrics["f1_macro_tuned"] = set_scores(scores, tuned)["f1_macro"]
        own = "stored thresholds" if self._given is not None else "0.5"
        line = f"mAP {metrics['map']:.3f} F1 macro {metrics['f1_macro']:.3f} micro {metrics['f1_micro']:.3f} at {own}"
        line += f", exact {metrics['exact_match']:.3f}, loss {loss:.4f} ({len(scores.samples)} images)"
        cells = {name: f"{value:.3f}" for name, value in metrics.items()}
        return Evaluation(
            metrics,
            line,
            samples=len(scores.samples),
            tables={
                "results": Table(list(cells), [list(cells.values())]),
                "per_class": per_class_table(scores, used, self._names, precisions),
            },
            arrays=lambda: {
                "path": [self._val.source.name(i) for i in scores.samples.tolist()],
                "label": scores.truth,
                "probabilities": scores.probabilities,
                "class_names": list(self._names),
            },
            stored={"thresholds": [float(value) for value in tuned], "per_class": set_counts(scores, tuned)},
        )

    @staticmethod
    def _undefined(loss: float) -> Mapping[str, float]:
        names = ("map", "f1_macro", "f1_micro", "exact_match")
        return {**dict.fromkeys(names, float("nan")), "loss": loss, "f1_macro_tuned": float("nan")}
