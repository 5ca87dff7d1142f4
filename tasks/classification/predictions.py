"""Per-sample predictions of a classifier, for per-class tables, the confusion matrix and the worst mistakes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.batches import Batch
from utils.distributed.world import World


@dataclass(frozen=True)
class Predictions:
    """One entry per readable sample, in dataset order.

    `samples` int64 (N,): indices in the dataset; `labels`, `predicted` int64 (N,), -1 for an image with NaN logits;
    `confidence` float32 (N,): the probability of the predicted class; `logits` float32 (N, classes), None if there are
    too many to keep.
    """

    samples: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    logits: Tensor | None = None

    def confusion(self, classes: int) -> Tensor:
        """Returns the confusion matrix, true classes in rows: int64 (classes, classes)."""
        valid = self.predicted >= 0
        pairs = self.labels[valid] * classes + self.predicted[valid]
        return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)

    def per_class(self, classes: int) -> list["ClassScore"]:
        """Returns the score of every class with samples, in label order."""
        labels, predicted = self.labels, self.predicted
        counts = torch.bincount(labels, minlength=classes)
        correct = torch.bincount(labels[labels == predicted], minlength=classes)
        wrong = (labels != predicted) & (predicted >= 0)
        pairs, often = torch.unique(torch.stack([labels[wrong], predicted[wrong]]), dim=1, return_counts=True)
        usual: dict[int, tuple[int, int]] = {}  # class: count, predicted class; ties keep the first
        for label, other, times in zip(*pairs.tolist(), often.tolist(), strict=True):
            if times > usual.get(label, (0, 0))[0]:
                usual[label] = (times, other)
        return [
            ClassScore(label, int(counts[label]), int(correct[label]), usual[label][1] if label in usual else None)
            for label in counts.nonzero().flatten().tolist()
        ]

    def class_counts(self, classes: int) -> dict[str, list[int]]:
        """Returns, per class, the samples, the correct ones among them and the predictions: plain values to store."""
        correct, valid = self.labels[self.labels == self.predicted], self.predicted[self.predicted >= 0]
        counted = {"samples": self.labels, "correct": correct, "predicted": valid}
        return {name: torch.bincount(own, minlength=classes).tolist() for name, own in counted.items()}

    def worst(self, count: int) -> list[int]:
        """Returns the entries of the most confident wrong predictions, worst first."""
        wrong = ((self.labels != self.predicted) & (self.predicted >= 0)).nonzero().flatten()
        order = self.confidence[wrong].argsort(descending=True, stable=True)
        return wrong[order][:count].tolist()


@dataclass(frozen=True)
class ClassScore:
    """Score of one class; `mistaken_for`: its most frequent wrong prediction."""

    label: int
    samples: int
    correct: int
    mistaken_for: int | None

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct / self.samples


class PredictionCollector:
    """Collects the predictions of this rank; `result` gathers them from all ranks.

    Args: keeps_logits: whether to collect the logits as well.
    """

    def __init__(self, keeps_logits: bool = False) -> None:
        self._keeps_logits = keeps_logits
        self._own: list[Tensor] = []

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Adds a batch. Args: logits (B, classes); batch: with int64 targets (B,)."""
        confidence, predicted = logits.float().softmax(1).max(1)
        predicted = predicted.masked_fill(confidence.isnan(), -1)
        samples = torch.tensor(batch.samples, device=logits.device)
        # float64 holds every index exactly; MPS does not support it, and float32 holds 16 million
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        rows = torch.stack([column.to(dtype) for column in (samples, batch.targets, predicted, confidence)], dim=1)
        self._own.append(torch.cat([rows, logits.to(dtype)], dim=1) if self._keeps_logits else rows)

    def result(self, world: World) -> Predictions:
        """Returns the predictions for all samples, in dataset order. A collective operation."""
        found = world.gather_rows(torch.cat(self._own) if self._own else torch.zeros(0, 4, device=world.device))
        found = found[found[:, 0].argsort()]
        samples, labels, predicted, confidence = found[:, :4].unbind(1)
        logits = found[:, 4:].float() if self._keeps_logits else None
        return Predictions(samples.long(), labels.long(), predicted.long(), confidence.float(), logits)
