"""Runs read from their folders, to compare and to report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.loading import parse_config
from utils.errors import DataError
from utils.logs import curves

UNINTERESTING = ("OUTPUT", "TAG", "BASE")
SUMMARY_HEAD = ("run", "epochs", "best top1", "of epoch", "min val loss", "last train loss")


@dataclass(frozen=True)
class Run:
    """The folder of a run: flat configuration, and the records of metrics.jsonl: of training intervals, and of epochs,
    with or without an evaluation."""

    folder: Path
    config: dict[str, Any]
    train: list[dict[str, Any]]
    epochs: list[dict[str, Any]]

    @staticmethod
    def read(folder: Path) -> "Run":
        """Raises: DataError if the folder is not that of a run."""
        try:
            config = parse_config((folder / "config.yaml").read_text(encoding="utf-8"), str(folder / "config.yaml"))
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", e)
            raise DataError(f"not the folder of a run ({reason}): {folder}: name output/<MODEL.NAME>/<TAG>") from e
        train, epochs = ([line for line in lines if line["kind"] in kinds] for kinds in (("train",), ("val", "epoch")))
        return Run(folder, config, train, epochs)

    @property
    def name(self) -> str:
        return "/".join(self.folder.resolve().parts[-2:])

    def summary(self) -> list[Any]:
        """Returns the cells of `SUMMARY_HEAD`."""
        top1 = [(line["top1"], -line["epoch"]) for line in self.epochs if line.get("top1") is not None]
        best, epoch = max(top1, default=(float("nan"), None))
        losses = [line["loss"] for line in self.epochs if line.get("loss") is not None]
        # that of the last epoch, as in the log; its last interval may be short
        trained = [line["train_loss"] for line in self.epochs if line.get("train_loss") is not None]
        trained = trained or [line["loss"] for line in self.train if line.get("loss") is not None]
        epochs = 1 + max((line["epoch"] for line in self.epochs), default=-1)
        return [
            self.name,
            epochs,
            float(best),
            "" if epoch is None else -epoch,
            float(min(losses, default=float("nan"))),
            float(trained[-1] if trained else "nan"),
        ]


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Returns a row per key that is not the same in all runs: its name, and its value in each."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in UNINTERESTING)
    rows = [[key, *(str(run.config.get(key, "")) for run in runs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def curves_figure(runs: Sequence[Run]) -> Any:
    """Returns a figure of the curves of all runs over their updates."""
    return curves.curves_figure([(run.name, [*run.train, *run.epochs]) for run in runs])
