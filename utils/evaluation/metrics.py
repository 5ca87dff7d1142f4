"""Sums that are divided once: training loss and evaluation counts."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import PlanError


def finite(value: float) -> float | None:
    """The value as JSON can hold it: None where it is not finite."""
    return value if math.isfinite(value) else None


@dataclass
class Mean:
    """A running mean, kept as sum and weight so that it can be saved and carried on."""

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
class EvalResult:
    """Top-1 and top-k in percent, mean loss, and the counts they come from."""

    top1: float
    topk: float
    loss: float
    k: int
    correct1: int
    correctk: int
    count: int

    def line(self) -> str:
        """For the log, in the shape people know."""
        counts = f"({self.correct1} of {self.count})"
        return f" * Acc@1 {self.top1:.3f} Acc@{self.k} {self.topk:.3f} loss {self.loss:.4f} {counts}"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def evaluation_sums(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Correct at 1, correct at k, summed cross-entropy, count: (4,) of a batch.

    Args: logits (B, classes) in any type; targets int64 (B,), -1 for a sample that does not count; 1 <= k <= classes.
    """
    logits = logits.float()
    ranked = logits.topk(k, dim=1).indices == targets[:, None]
    loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-1)
    # float64 keeps counts and sums exact over a data set; MPS has none
    kind = torch.float32 if logits.device.type == "mps" else torch.float64
    count = (targets >= 0).sum()
    return torch.stack([part.to(kind) for part in (ranked[:, 0].sum(), ranked.sum(), loss, count)])


def evaluation_result(sums: Tensor, k: int) -> EvalResult:
    """Divide the sums over the whole data set. Raises: PlanError if there were no samples."""
    correct1, correctk, loss, count = sums.tolist()
    if count == 0:
        raise PlanError("no sample was evaluated: DATA.DATA_PATH: none of the validation images could be read")
    return EvalResult(
        top1=100.0 * correct1 / count,
        topk=100.0 * correctk / count,
        loss=loss / count,
        k=k,
        correct1=int(correct1),
        correctk=int(correctk),
        count=int(count),
    )
