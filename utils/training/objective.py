"""What is trained and how it is judged: the seam between the training loop and a task.

The loop, the session, checkpoints and logs know losses and metrics by name only. A new task is a new `Objective`;
classification.py has the first one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from utils.batches import Batch
from utils.pictures import Pictures


@dataclass(frozen=True)
class Best:
    """Which metric of an evaluation decides which checkpoint is the best.

    `title` of its curve, the metric's name if empty; `beside`: further metrics to draw with it.
    """

    metric: str
    higher_is_better: bool = True
    title: str = ""
    beside: tuple[str, ...] = ()

    def improves(self, value: float, best: float | None) -> bool:
        """Returns whether `value` beats `best`; anything beats None, NaN beats nothing."""
        if best is None:
            return value == value
        return value > best if self.higher_is_better else value < best


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    `metrics` by name, as metrics.jsonl records them, none without validation data; `line` for the log; `scalars` for
    TensorBoard, the metrics themselves if None; `pictures`: functions that draw what a tracker shows at the end of the
    run, by name; `each_epoch`: after every epoch.
    """

    metrics: Mapping[str, float]
    line: str
    scalars: Mapping[str, float] | None = None
    pictures: Pictures = field(default_factory=dict)
    each_epoch: Pictures = field(default_factory=dict)


class Objective(Protocol):
    """A task to train."""

    @property
    def best(self) -> Best | None:
        """The metric that decides which checkpoint is the best, None if there is none."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Runs the forward pass of one micro-batch.

        Args: model: as it trains, possibly wrapped for several ranks.
        Returns: scalars by name, the same names on every call and rank: "loss", which is minimised, and any parts of it
        worth logging. The loss is a mean over the samples of the batch.
        """
        ...

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Evaluation | None:
        """Evaluates after an epoch, on all ranks; None if there is nothing to evaluate. Must not affect training.

        Args: limit: of the batches of every rank, to see how long it takes.
        """
        ...

    @property
    def evaluation_batches(self) -> int:
        """How many batches a rank evaluates; 0 if there is nothing to evaluate."""
        ...
