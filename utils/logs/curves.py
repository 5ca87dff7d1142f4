"""curves.png: losses, metrics and learning rate of a run, drawn from its metrics.jsonl."""

import json
import logging
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from utils.errors import one_line
from utils.files import atomic_path
from utils.pictures import new_figure
from utils.training.objective import Best

log = logging.getLogger(__name__)

_COLORS = ("tab:green", "tab:olive", "tab:cyan", "tab:purple")
_FIRST = 30.0  # seconds until the first drawing
_PAUSE = 50  # between two drawings, in units of the time that one takes: 2 % of the run


class Curves:
    """curves.png of a run, redrawn after an epoch unless the last drawing is too recent.

    Args: folder of the run; the others as for `draw_curves`.
    """

    def __init__(self, folder: Path, updates_per_epoch: int, best: Best | None) -> None:
        self._metrics, self._picture = folder / "metrics.jsonl", folder / "curves.png"
        self._updates_per_epoch, self._best = updates_per_epoch, best
        self._due = time.monotonic() + _FIRST
        self._outdated = True  # an earlier start may have been killed before it drew its last epochs

    def after_epoch(self) -> None:
        self._outdated = True
        begun = time.monotonic()
        if begun >= self._due:
            self.finish()
            self._due = time.monotonic() + _PAUSE * (time.monotonic() - begun)

    def finish(self) -> None:
        """Draws the picture if it lacks an epoch."""
        if self._outdated and self._metrics.exists():
            draw_curves(self._metrics, self._picture, self._updates_per_epoch, self._best)
            self._outdated = False


def draw_curves(metrics: Path, picture: Path, updates_per_epoch: int, best: Best | None) -> None:
    """Redraws the picture from all lines of `metrics`; a failure is a warning.

    Args: best: the metrics to draw, None for losses only.
    """
    try:
        _draw(metrics, picture, updates_per_epoch, best)
    except Exception as e:  # of the disk, or of matplotlib: the run matters more
        log.warning("cannot draw %s (%s); training continues", picture, one_line(e))


def _draw(metrics: Path, picture: Path, updates_per_epoch: int, best: Best | None) -> None:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = whole_intervals([line for line in lines if line["kind"] == "train"])
    val = [line for line in lines if line["kind"] == "val"]
    figure = new_figure(10, 6.4)
    (losses, judged), (rate, norm) = figure.subplots(2, 2, sharex=True)

    def plot(axes: Any, points: list[dict[str, Any]], key: str, label: str, color: str) -> None:
        values = [float("nan") if p.get(key) is None else p[key] for p in points]
        epochs = [p["update"] / updates_per_epoch for p in points]
        axes.plot(epochs, values, label=label, color=color, linewidth=1.3, marker="o" if len(points) < 2 else None)

    plot(losses, train, "loss", "training", "tab:blue")
    if any("loss" in point for point in val):
        plot(losses, val, "loss", "validation", "tab:orange")
    for name, color in zip((best.metric, *best.beside) if best and val else (), _COLORS, strict=False):
        plot(judged, val, name, f"top{val[-1]['k']}" if name == "topk" and "k" in val[-1] else name, color)
    plot(rate, train, "lr", "learning rate", "tab:red")
    plot(norm, train, "grad_norm", "before clipping", "tab:brown")
    title = (best.title or f"validation {best.metric}") if best else "no validation"
    for axes, text in ((losses, "loss"), (judged, title), (rate, "learning rate"), (norm, "gradient norm")):
        axes.set_title(text)
        axes.grid(alpha=0.3)
        if len(axes.lines) and axes is not rate:
            axes.legend(frameon=False)
    for axes in (rate, norm):
        axes.set_xlabel("epochs trained")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def whole_intervals(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out the means of intervals that the end of an epoch cut short: of few updates, they would be spikes."""
    lengths = [b["update"] - a["update"] for a, b in pairwise([{"update": 0}, *records])]
    usual = max(lengths, default=0)
    return [record for record, length in zip(records, lengths, strict=True) if 2 * length > usual]
