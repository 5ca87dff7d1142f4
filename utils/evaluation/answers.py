"""What a classifier answered, sample by sample: for tables per class, the confusion matrix and the worst mistakes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.distributed.world import World

NOT_COUNTED = -1  # a sample that could not be read


@dataclass(frozen=True)
class Answers:
    """One entry per sample, in order: its label, the predicted class, and the predicted class's probability.

    `labels`, `predicted` int64 (N,), the label `NOT_COUNTED` for samples that could not be read; `confidence` float32
    (N,).
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor

    def confusion(self, classes: int) -> Tensor:
        """Returns how often each class (row) was taken for each (column): int64 (classes, classes)."""
        counted = self.labels != NOT_COUNTED
        pairs = self.labels[counted] * classes + self.predicted[counted]
        return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)

    def per_class(self, classes: int) -> list["ClassScore"]:
        """Returns a score for every class that has samples, in label order."""
        counted = self.labels != NOT_COUNTED
        labels, predicted = self.labels[counted], self.predicted[counted]
        counts = torch.bincount(labels, minlength=classes)
        correct = torch.bincount(labels[labels == predicted], minlength=classes)
        wrong = labels != predicted
        pairs, often = torch.unique(torch.stack([labels[wrong], predicted[wrong]]), dim=1, return_counts=True)
        usual: dict[int, tuple[int, int]] = {}  # class: times, what it was taken for; the first of equals
        for label, other, times in zip(*pairs.tolist(), often.tolist(), strict=True):
            if times > usual.get(label, (0, 0))[0]:
                usual[label] = (times, other)
        return [
            ClassScore(label, int(counts[label]), int(correct[label]), usual[label][1] if label in usual else None)
            for label in counts.nonzero().flatten().tolist()
        ]

    def worst(self, count: int) -> list[int]:
        """Returns the samples with the most confident wrong answers, the worst first."""
        wrong = ((self.labels != NOT_COUNTED) & (self.labels != self.predicted)).nonzero().flatten()
        order = self.confidence[wrong].argsort(descending=True, stable=True)
        return wrong[order][:count].tolist()


@dataclass(frozen=True)
class ClassScore:
    """How one class fared: its `label`, samples, correct ones, and what it was most often taken for."""

    label: int
    samples: int
    correct: int
    mistaken_for: int | None

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * self.correct / self.samples


class AnswerCollector:
    """Collects the answers of this rank; `result` puts those of all ranks in the order of the samples."""

    def __init__(self) -> None:
        self._own: list[Tensor] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Args: logits (B, classes); targets int64 (B,), -1 for samples to leave out."""
        confidence, predicted = logits.float().softmax(1).max(1)
        # float32 holds every class number exactly
        self._own.append(torch.stack([targets.float(), predicted.float(), confidence], dim=1))

    def result(self, world: World) -> Answers:
        """Returns the answers to all samples: rank r had samples r, r + size, ... A collective operation."""
        own = torch.cat(self._own) if self._own else torch.zeros(0, 3, device=world.device)
        counts = world.gather(torch.tensor(float(len(own)), device=world.device))
        rows = torch.zeros(int(counts.max()), 3, device=world.device)
        rows[: len(own)] = own
        in_order = world.gather(rows).transpose(0, 1).reshape(-1, 3)[: int(counts.sum())]
        labels, predicted, confidence = in_order.unbind(1)
        return Answers(labels.long(), predicted.long(), confidence.float())
