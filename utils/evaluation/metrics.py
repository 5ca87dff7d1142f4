"""Accuracy and loss as sums that are divided once."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed.world import World
from utils.errors import DataError
from utils.evaluation.answers import AnswerCollector, Answers
from utils.evaluation.predict import predict
from utils.evaluation.routing import RoutingMeter, warn_of_drops
from utils.precision import Precision


def finite(value: float) -> float | None:
    """Returns the value, or None if JSON cannot represent it."""
    return value if math.isfinite(value) else None


@dataclass
class Mean:
    """A running mean, kept as sum and weight so that it can be saved and continued."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.total += value * weight
        self.weight += weight

    def clear(self) -> None:
        self.total = self.weight = 0.0

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else float("nan")


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-k accuracy in percent, mean cross-entropy, and the counts behind them."""

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
    """Accumulates the sums of this rank; `result` reduces them over all ranks and divides once.

    Args: classes: of the model; the top-k is top-5, or top-`classes` if there are fewer.
    """

    def __init__(self, classes: int):
        self.k = min(5, classes)
        self._sums: Tensor | None = None

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Args: logits (B, classes) of any type; targets int64 (B,), -1 for samples to leave out."""
        sums = accuracy_sums(logits, targets, self.k)
        self._sums = sums if self._sums is None else self._sums + sums

    def result(self, world: World) -> Accuracy:
        """Raises: DataError if no sample was counted on any rank."""
        own = torch.zeros(4, device=world.device) if self._sums is None else self._sums  # more ranks than samples
        return accuracy_of(world.gather(own).sum(0), self.k)


def accuracy_sums(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Returns correct at 1, correct at k, summed cross-entropy and count of a batch: (4,).

    Args: logits (B, classes) of any type; targets int64 (B,), -1 for samples to leave out; 1 <= k <= classes.
    """
    logits = logits.float()
    ranked = logits.topk(k, dim=1).indices == targets[:, None]
    loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-1)
    # float64 keeps counts and sums exact over a data set; MPS does not support it
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    count = (targets >= 0).sum()
    return torch.stack([part.to(dtype) for part in (ranked[:, 0].sum(), ranked.sum(), loss, count)])


def accuracy_of(sums: Tensor, k: int) -> Accuracy:
    """Divides the sums over the whole data set. Raises: DataError if it has no readable sample."""
    correct1, correctk, loss, count = sums.tolist()
    if count == 0:
        raise DataError("no sample was evaluated: DATA.DATA_PATH: none of the validation images could be read")
    return Accuracy(
        top1=100.0 * correct1 / count,
        topk=100.0 * correctk / count,
        loss=loss / count,
        k=k,
        correct1=int(correct1),
        correctk=int(correctk),
        count=int(count),
    )


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int, precision: Precision, world: World
) -> tuple[Accuracy, Answers]:
    """Returns the accuracy over all ranks' shards, and the answers; independent of batch size and number of ranks."""
    counter, collector, meter = AccuracyCounter(classes), AnswerCollector(), RoutingMeter(model)
    for logits, targets in predict(model, batches, precision, world):
        counter.add(logits, targets)
        collector.add(logits, targets)
        meter.add()
    warn_of_drops(meter.result(world))
    return counter.result(world), collector.result(world)
