"""Plots of losses, metrics and learning rate from metrics.jsonl: curves.png of a run, and comparisons of runs."""

import logging
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from utils.errors import one_line
from utils.files import atomic_path
from utils.fonts import legible
from utils.logs.metrics_file import RESERVED, read_records
from utils.pictures import new_figure
from utils.training.objective import Best

log = logging.getLogger(__name__)

Records = list[dict[str, Any]]
_STYLES = ("-", "--", ":", "-.")
_FIRST = 30.0  # seconds until the first plot
_PAUSE = 50  # between plots, as a multiple of the time to draw one: 2% of the run


class Curves:
    """curves.png of a run, redrawn after an epoch unless the last plot is too recent.

    Args: folder: the run's folder; others: as for `draw_curves`.
    """

    def __init__(self, folder: Path, updates_per_epoch: int, best: Best | None) -> None:
        self._metrics, self._picture = folder / "metrics.jsonl", folder / "curves.png"
        self._updates_per_epoch, self._best = updates_per_epoch, best
        self._due = time.monotonic() + _FIRST
        self._outdated = True  # an earlier start may have been killed before its last plot

    def after_epoch(self) -> None:
        self._outdated = True
        begun = time.monotonic()
        if begun >= self._due:
            self.finish()
            self._due = time.monotonic() + _PAUSE * (time.monotonic() - begun)

    def finish(self) -> None:
        """Redraws the picture if it is outdated."""
        if self._outdated and self._metrics.exists():
            draw_curves(self._metrics, self._picture, self._updates_per_epoch, self._best)
            self._outdated = False


def draw_curves(metrics: Path, picture: Path, updates_per_epoch: int, best: Best | None) -> None:
    """Draws the picture from all lines of `metrics`; only warns if it fails.

    Args: best: the metrics to draw, None for losses only.
    """
    try:
        records = read_records(metrics)
        names = (best.metric, *best.beside) if best else ()
        figure = curves_figure([("", records)], names, best.title if best else "", updates_per_epoch)
        with atomic_path(picture) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    except Exception as e:  # from the disk, or from Matplotlib: the run matters more
        log.warning("cannot draw %s (%s); training continues", picture, one_line(e))


def curves_figure(
    runs: Sequence[tuple[str, Records]],
    metrics: Sequence[str] | None = None,
    title: str = "",
    updates_per_epoch: int = 0,
) -> Any:
    """Plots losses, metrics, learning rate and gradient norm.

    Args: runs: names, and the records of their metrics.jsonl; metrics: names to draw, None for all; title: title of
    their panel; updates_per_epoch: scales the axis to epochs; 0: to updates.
    """
    if metrics is None:
        metrics = metric_names([record for _, records in runs for record in records])
    figure = new_figure(10, 6.4)
    (losses, judged), (rate, norm) = figure.subplots(2, 2, sharex=True)
    for number, (name, records) in enumerate(runs):
        train = whole_intervals([record for record in records if record["kind"] == "train"])
        val = [record for record in records if record["kind"] == "val"]
        lines = [(losses, train, "loss", "training", 0), (losses, val, "loss", "validation", 1)]
        lines += [(judged, val, metric, metric, place) for place, metric in enumerate(metrics)]
        lines += [(rate, train, "lr", "", 0), (norm, train, "grad_norm", "", 0)]
        for axes, points, key, kind, place in lines:
            # one colour per run, or per line if there is only one run
            color, style = (number, place) if len(runs) > 1 else (place, 0)
            look = {"color": f"C{color}", "linestyle": _STYLES[style % len(_STYLES)]}
            _plot(
                axes, points, key, updates_per_epoch or 1, label=legible(", ".join(filter(None, (name, kind)))), **look
            )
    title = (title or f"validation {', '.join(metrics)}") if judged.lines else "no validation"
    titles = {losses: "loss", judged: title, rate: "learning rate", norm: "gradient norm before clipping"}
    for axes, text in titles.items():
        axes.set_title(text)
        axes.grid(alpha=0.3)
        if axes.lines and (axes in (losses, judged) or len(runs) > 1):
            axes.legend(frameon=False, fontsize=8)
    for axes in (rate, norm):
        axes.set_xlabel("epochs trained" if updates_per_epoch else "updates")
    return figure


def metric_names(records: Records) -> list[str]:
    """Returns the metrics of an evaluation: fields that are neither counts nor reserved; the loss if there are none."""
    val = [record for record in records if record["kind"] == "val"]
    known = [name for record in val for name, value in record.items() if isinstance(value, float)]
    return [name for name in dict.fromkeys(known) if name not in {*RESERVED, "loss"}] or ["loss"]


def _plot(axes: Any, points: Records, key: str, unit: int, **look: str) -> None:
    values = [float("nan") if p.get(key) is None else p[key] for p in points]
    if any(value == value for value in values):
        marker = "o" if len(points) < 2 else None
        axes.plot([p["update"] / unit for p in points], values, linewidth=1.3, marker=marker, **look)


def whole_intervals(records: Records) -> Records:
    """Drops means of intervals cut short by the end of an epoch: over few updates, they would show as spikes."""
    lengths = [b["update"] - a["update"] for a, b in pairwise([{"update": 0}, *records])]
    usual = max(lengths, default=0)
    return [record for record, length in zip(records, lengths, strict=True) if 2 * length > usual]
