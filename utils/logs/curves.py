"""Plots of losses, metrics and learning rate from metrics.jsonl: curves.png of a run, and comparisons of runs."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from utils.errors import one_line
from utils.files import atomic_path
from utils.fonts import legible
from utils.logs.metrics_file import RESERVED, read_records
from utils.pictures import new_figure, rendered
from utils.training.objective import Best

log = logging.getLogger(__name__)

Records = list[dict[str, Any]]
PANELS = {"loss": "loss", "metrics": "", "lr": "learning rate", "grad_norm": "gradient norm before clipping"}  # titles
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
        plotted = Plotted([("", records)], names, best.title if best else "", updates_per_epoch)
        figure = curves_figure(plotted)
        with atomic_path(picture) as temporary:
            rendered(figure).save(temporary, "PNG")
    except Exception as e:  # from the disk, or from Matplotlib: the run matters more
        log.warning("cannot draw %s (%s); training continues", picture, one_line(e))


@dataclass(frozen=True)
class Plotted:
    """Runs to plot: their names, and the records of their metrics.jsonl.

    `metrics`: names to draw, None for all; `title` of their panel; `updates_per_epoch`: scales the axis to epochs; 0:
    to updates.
    """

    runs: Sequence[tuple[str, Records]]
    metrics: Sequence[str] | None = None
    title: str = ""
    updates_per_epoch: int = 0

    def names(self) -> Sequence[str]:
        """Returns the metrics to draw."""
        every = [record for _, records in self.runs for record in records]
        return metric_names(every) if self.metrics is None else self.metrics


def curves_figure(plotted: Plotted) -> Any:
    """Plots losses, metrics, learning rate and gradient norm in one figure."""
    figure = new_figure(10, 6.4)
    panels = figure.subplots(2, 2, sharex=True)
    for axes, name in zip(panels.flat, PANELS, strict=True):
        _draw_panel(axes, name, plotted)
    for axes in panels[0]:
        axes.set_xlabel("")
    return figure


def panel_figures(plotted: Plotted) -> list[Any]:
    """Plots losses, metrics, learning rate and gradient norm in a figure each; leaves out those without values."""
    figures = []
    for name in PANELS:
        figure = new_figure(5, 3.3)
        axes = figure.subplots()
        _draw_panel(axes, name, plotted)
        figures += [figure] if axes.lines else []
    return figures


def _draw_panel(axes: Any, panel: str, plotted: Plotted) -> None:
    """Draws all runs. Args: panel: one of `PANELS`."""
    several, unit = len(plotted.runs) > 1, plotted.updates_per_epoch
    for number, (name, records) in enumerate(plotted.runs):
        train = whole_intervals([record for record in records if record["kind"] == "train"])
        val = [record for record in records if record["kind"] == "val"]
        lines = {
            "loss": [(train, "loss", "training"), (val, "loss", "validation")],
            "metrics": [(val, metric, metric) for metric in plotted.names()],
            "lr": [(train, "lr", "")],
            "grad_norm": [(train, "grad_norm", "")],
        }[panel]
        for place, (points, key, kind) in enumerate(lines):
            # one colour per run, or per line if there is only one run
            color, style = (number, place) if several else (place, 0)
            look = {"color": f"C{color}", "linestyle": _STYLES[style % len(_STYLES)]}
            _plot(axes, points, key, unit or 1, label=legible(", ".join(filter(None, (name, kind)))), **look)
    judged = plotted.title or f"validation {', '.join(plotted.names())}"
    axes.set_title(PANELS[panel] or (judged if axes.lines else "no validation"))
    axes.set_xlabel("epochs trained (epoch 0 ends at 1)" if unit else "updates")
    axes.grid(alpha=0.3)
    if axes.lines and (panel in ("loss", "metrics") or several):
        axes.legend(fontsize=8)


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
