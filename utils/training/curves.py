"""curves.png: losses, metrics and learning rate of a run, drawn from its metrics.jsonl."""

import json
import logging
from pathlib import Path
from typing import Any

from utils.errors import one_line
from utils.files import atomic_path
from utils.training.objective import Best

log = logging.getLogger(__name__)

_COLORS = ("tab:green", "tab:olive", "tab:cyan", "tab:purple")


def draw_curves(metrics: Path, picture: Path, updates_per_epoch: int, best: Best | None) -> None:
    """Redraws the picture from all lines of `metrics`; a failure is a warning.

    Args: best: the metrics to draw, None for losses only.
    """
    try:
        _draw(metrics, picture, updates_per_epoch, best)
    except Exception as e:  # of the disk, or of matplotlib: the run matters more
        log.warning("cannot draw %s (%s); training continues", picture, one_line(e))


def _draw(metrics: Path, picture: Path, updates_per_epoch: int, best: Best | None) -> None:
    # imported here: only the rank that draws needs it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    val = [line for line in lines if line["kind"] == "val"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, judged, rate = figure.subplots(1, 3)

    def plot(axes: Any, points: list[dict[str, Any]], key: str, label: str, color: str) -> None:
        values = [float("nan") if p.get(key) is None else p[key] for p in points]
        epochs = [p["update"] / updates_per_epoch for p in points]
        axes.plot(epochs, values, label=label, color=color, linewidth=1.3, marker="o" if len(points) < 2 else None)

    plot(losses, train, "loss", "training", "tab:blue")
    if any("loss" in point for point in val):
        plot(losses, val, "loss", "validation", "tab:orange")
    for name, color in zip((best.metric, *best.beside) if best and val else (), _COLORS, strict=False):
        plot(judged, val, name, name, color)
    plot(rate, train, "lr", "learning rate", "tab:red")
    title = (best.title or f"validation {best.metric}") if best else "no validation"
    for axes, text in ((losses, "loss"), (judged, title), (rate, "learning rate")):
        axes.set_title(text)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
