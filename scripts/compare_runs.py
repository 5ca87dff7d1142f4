"""Compares runs: where their configurations differ, what they reached, and their curves in one picture.

python scripts/compare_runs.py output/swin_tiny/default output/swin_tiny/longer --picture curves.png
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.loading import parse_config
from utils.errors import DataError, ResourceError, run_to_exit_code
from utils.files import atomic_path
from utils.terminal import table_lines

UNINTERESTING = ("OUTPUT", "TAG", "BASE")


@dataclass(frozen=True)
class Run:
    """The folder of a run: flat configuration, and the records of metrics.jsonl by kind."""

    name: str
    config: dict[str, Any]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]

    @staticmethod
    def read(folder: Path) -> "Run":
        """Raises: DataError if the folder is not that of a run."""
        try:
            config = parse_config((folder / "config.yaml").read_text(encoding="utf-8"), str(folder / "config.yaml"))
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", e)
            raise DataError(f"not the folder of a run ({reason}): {folder}: name output/<MODEL.NAME>/<TAG>") from e
        train, val = ([line for line in lines if line["kind"] == kind] for kind in ("train", "val"))
        return Run("/".join(folder.resolve().parts[-2:]), config, train, val)

    def row(self) -> list[Any]:
        """Returns name, epochs, best top-1 and its epoch, lowest validation loss, last training loss."""
        top1 = [(line["top1"], -line["epoch"]) for line in self.val if line.get("top1") is not None]
        best, epoch = max(top1, default=(float("nan"), 1))
        losses = [line["loss"] for line in self.val if line.get("loss") is not None]
        last = self.train[-1]["loss"] if self.train and self.train[-1]["loss"] is not None else float("nan")
        epochs = 1 + max((line["epoch"] for line in self.val), default=-1)
        return [self.name, epochs, float(best), -epoch, float(min(losses, default=float("nan"))), float(last)]


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Returns a row per key that is not the same in all runs: its name, and its value in each."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in UNINTERESTING)
    rows = [[key, *(str(run.config.get(key, "")) for run in runs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def draw(runs: Sequence[Run], picture: Path) -> None:
    """Draws losses and accuracies of all runs over the samples trained. Raises: ResourceError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, judged = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        color = f"C{number}"
        _plot(losses, run.train, "loss", f"{run.name}, training", color, "-")
        _plot(losses, run.val, "loss", f"{run.name}, validation", color, "--")
        _plot(judged, run.val, "top1", run.name, color, "-")
    for axes, title in ((losses, "loss"), (judged, "validation top-1, %")):
        axes.set_title(title)
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(picture) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    except OSError as e:
        raise ResourceError(f"cannot write the picture ({e.strerror}): {picture}: name another file") from e


def _plot(axes: Any, points: list[dict[str, Any]], key: str, label: str, color: str, style: str) -> None:
    known = [(point["update"], point[key]) for point in points if point.get(key) is not None]
    if known:
        marker = "o" if len(known) < 2 else None
        axes.plot(*zip(*known, strict=True), label=label, color=color, linestyle=style, linewidth=1.3, marker=marker)


def compare(folders: Sequence[Path], picture: Path | None) -> None:
    """Prints the tables, and draws the curves into `picture`. Raises: DataError, ResourceError."""
    runs = [Run.read(folder) for folder in folders]
    head = ["run", "epochs", "best top1", "of epoch", "lowest val loss", "last train loss"]
    print("\n".join(table_lines(head, [run.row() for run in runs])))
    rows = differences(runs)
    if rows:
        print("\n".join(["", *table_lines(["key", *(run.name for run in runs)], rows)]))
    if picture:
        draw(runs, picture)
        print(f"\ncurves: {picture}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders output/<MODEL.NAME>/<TAG>")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="PNG of the curves to write")
    options = parser.parse_args(argv)
    return run_to_exit_code(lambda: compare(options.runs, options.picture))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
