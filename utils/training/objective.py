"""The interface between training and a task; losses, metrics and tables are identified by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from utils.batches import Batch
from utils.pictures import Pictures


@dataclass(frozen=True)
class Best:
    """The metric that selects the best checkpoint.

    `title` of its curve, the metric's name if empty; `beside`: further metrics in the same plot.
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
    """The result of an evaluation.

    `metrics` by name, as recorded in metrics.jsonl, empty without validation data; `line` for the log; `scalars` for
    TensorBoard, None for the metrics; `samples` evaluated, across all ranks; `notes`: extra log lines when evaluating
    files; `tables` by name: "per_class" and "results" (one row, to compare files) can be written to CSV, report.py
    shows all; `pictures` for report.py and for trackers at the end of the run, drawn on demand; `each_epoch`: pictures
    for trackers after every evaluation; `stored`: plain values to store in the checkpoint of the evaluated weights, by
    name in utils/checkpoints/contents.py; `arrays`: returns what TEST.PROBABILITIES writes, by name: "path", "label",
    "probabilities" (N, classes) and "class_names".
    """

    metrics: Mapping[str, float]
    line: str
    scalars: Mapping[str, float] | None = None
    samples: int = 0
    notes: Sequence[str] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Pictures = field(default_factory=dict)
    each_epoch: Pictures = field(default_factory=dict)
    stored: Mapping[str, Any] = field(default_factory=dict)
    arrays: Callable[[], Mapping[str, Any]] = dict


class Objective(Protocol):
    """A task, as seen by the training loop."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Runs the forward pass of one micro-batch.

        Args: model: the model in training, possibly wrapped for several ranks.
        Returns: scalars by name, the same names on every call and rank: "loss", which is minimised, and any parts of it
        worth logging. The loss is a mean over the samples of the batch.
        """
        ...

    def after_update(self, model: nn.Module, done: int, planned: int) -> None:
        """Called after every update, e.g. for the momentum encoder of a self-supervised task.

        Must not wait for the device: whether the update was skipped is not known yet.
        Args: model: not wrapped; done: updates of the plan done so far; planned: their total.
        """
        ...
