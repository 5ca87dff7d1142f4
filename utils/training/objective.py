"""The interface between training and a task: losses, metrics and tables are known by name only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from utils.batches import Batch
from utils.pictures import Pictures


@dataclass(frozen=True)
class Best:
    """The metric of an evaluation that decides which checkpoint is the best.

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


class Table(NamedTuple):
    """A table of an evaluation, such as the accuracy per class: column names and rows of cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    `metrics` by name, as metrics.jsonl records them, none without validation data; `line` for the log; `scalars` for
    TensorBoard, the metrics themselves if None; `samples` evaluated, over all ranks; `notes`: further log lines of an
    evaluation of files; `tables` by name: "per_class" and "results", a row for a comparison of files, can be written to
    CSV files, report.py shows all; `pictures`: functions that draw what trackers show at
    the end of the run, and report.py, by name; `each_epoch`: what trackers show after every evaluation.
    """

    metrics: Mapping[str, float]
    line: str
    scalars: Mapping[str, float] | None = None
    samples: int = 0
    notes: Sequence[str] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Pictures = field(default_factory=dict)
    each_epoch: Pictures = field(default_factory=dict)


class Objective(Protocol):
    """What the training loop needs of a task."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Runs the forward pass of one micro-batch.

        Args: model: as it trains, possibly wrapped for several ranks.
        Returns: scalars by name, the same names on every call and rank: "loss", which is minimised, and any parts of it
        worth logging. The loss is a mean over the samples of the batch.
        """
        ...

    def after_update(self, model: nn.Module, done: int, planned: int) -> None:
        """Called after every update, such as for the momentum encoder of a self-supervised task.

        Must not wait for the device: whether the update was skipped is not known yet.
        Args: model: not wrapped; done: updates of the plan that are done; planned: their total.
        """
        ...
