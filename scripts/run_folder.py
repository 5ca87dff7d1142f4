"""Runs read from their folders, for comparisons and reports."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from configs.loading import parse_config
from configs.schema import DEFAULT_TASK, KEYS
from tasks.registry import task_class
from utils.errors import DataError
from utils.logs import curves
from utils.logs.metrics_file import read_records, read_times
from utils.terminal import duration
from utils.training.objective import Best, Table

UNINTERESTING = ("OUTPUT", "TAG", "BASE")


@dataclass(frozen=True)
class Run:
    """Contents of a run folder: flat configuration, and records of metrics.jsonl by training interval and by epoch,
    with or without an evaluation."""

    folder: Path
    name: str
    config: dict[str, Any]
    train: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    times: dict[int, dict[str, float]] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> "Run":
        """Reads a run. Raises: DataError if the folder does not contain one."""
        try:
            config = parse_config((folder / "config.yaml").read_text(encoding="utf-8"), str(folder / "config.yaml"))
            lines, times = read_records(folder / "metrics.jsonl"), read_times(folder / "metrics.jsonl")
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", e)
            raise DataError(str(folder), f"not the folder of a run ({reason})", "name output/<MODEL.NAME>/<TAG>") from e
        lines = [line for line in lines if "kind" in line and "epoch" in line]
        train, epochs = ([line for line in lines if line["kind"] in kinds] for kinds in (("train",), ("val", "epoch")))
        name = "/".join(folder.resolve().parts[-2:])
        return Run(folder, name, config, train, epochs, times)

    @staticmethod
    def read_all(folders: Sequence[Path]) -> "list[Run]":
        """Reads runs, with names that differ."""
        runs = [Run.read(folder) for folder in folders]
        parts = [run.folder.resolve().parts for run in runs]
        shown = next(
            n for n in range(2, 3 + max(map(len, parts))) if len({each[-n:] for each in parts}) == len(set(parts))
        )
        return [replace(run, name="/".join(each[-shown:]).lstrip("/")) for run, each in zip(runs, parts, strict=True)]

    @property
    def updates_per_epoch(self) -> int:
        """Updates of a whole epoch, 0 if none is complete."""
        complete = [line["step"] for line in self.train if line["epoch"] < self.length and "step" in line]
        return max(complete, default=0)

    @property
    def length(self) -> int:
        """Epochs trained."""
        return 1 + max((line["epoch"] for line in self.epochs), default=-1)

    @property
    def best(self) -> Best | None:
        """The metric that selects the best checkpoint."""
        return task_class(self.config.get("TASK", DEFAULT_TASK)).best_of(self.config)

    def summary(self) -> list[Any]:
        """Returns the cells of a row of `summary_table`."""
        own = self.best
        known = [] if own is None else [line for line in self.epochs if line.get(own.metric) is not None]
        sign = 1 if own is not None and own.higher_is_better else -1
        best = max(known, key=lambda line: (sign * line[own.metric], -line["epoch"]), default=None)  # type: ignore[union-attr]
        losses = [line["loss"] for line in self.epochs if line.get("loss") is not None]
        # of the last epoch, as in the log; the last interval may be short
        trained = [line["train_loss"] for line in self.epochs if line.get("train_loss") is not None]
        trained = trained or [line["loss"] for line in self.train if line.get("loss") is not None]
        return [
            self.name,
            self.length,
            float("nan") if best is None or own is None else float(best[own.metric]),
            "" if best is None else best["epoch"],
            float(min(losses, default=float("nan"))),
            float(trained[-1] if trained else "nan"),
            duration(sum(line["seconds"] for line in self.times.values())) if self.times else "",
            median(line["images_per_s"] for line in self.times.values()) if self.times else "",
        ]


def summary_table(runs: Sequence[Run]) -> Table:
    """Returns a row per run: length, best metric and loss."""
    metrics = {run.best.metric for run in runs if run.best is not None}
    best = f"best {metrics.pop()}" if len(metrics) == 1 else "best"
    head = ("run", "epochs", best, "of epoch", "min val loss", "last train loss", "trained", "images/s")
    return Table(head, [run.summary() for run in runs])


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Returns a row per key that differs between runs: its name, and its value in each; first the keys that affect the
    result."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in UNINTERESTING)
    keys_first = sorted(keys, key=lambda name: name in KEYS and KEYS[name].free)
    rows = [[key, *(str(run.config.get(key, "")) for run in runs)] for key in keys_first]
    return [row for row in rows if len(set(row[1:])) > 1]


def curve_figures(runs: Sequence[Run]) -> list[Any]:
    """Returns figures of the losses, the metric that selects the best checkpoint, the learning rate and the gradient
    norm of all runs; with one run, of further metrics too."""
    best = {run.best for run in runs}
    own = best.pop() if len(best) == 1 else None
    metrics = None if own is None else (own.metric, *(own.beside if len(runs) == 1 else ()))
    lengths = {run.updates_per_epoch for run in runs}
    return curves.panel_figures(
        curves.Plotted(
            [(run.name if len(runs) > 1 else "", [*run.train, *run.epochs]) for run in runs],
            metrics,
            "" if own is None else own.title,
            lengths.pop() if len(lengths) == 1 else 0,
        )
    )
