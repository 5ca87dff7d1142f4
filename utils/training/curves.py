"""curves.png: loss, accuracy and learning rate of a run, drawn from its metrics.jsonl."""

import json
from pathlib import Path
from typing import Any


def draw_curves(metrics: Path, picture: Path, updates_per_epoch: int) -> None:
    """Redraw the picture from all lines of `metrics`."""
    # imported here: only the process that draws needs it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    val = [line for line in lines if line["kind"] == "val"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracy, rate = figure.subplots(1, 3)

    def plot(axes: Any, points: list[dict[str, Any]], key: str, label: str, color: str) -> None:
        epochs = [p["update"] / updates_per_epoch for p in points]
        marker = "o" if len(points) < 2 else None
        axes.plot(
            epochs,
            [float("nan") if p[key] is None else p[key] for p in points],
            label=label,
            color=color,
            linewidth=1.3,
            marker=marker,
        )

    plot(losses, train, "loss", "training", "tab:blue")
    plot(losses, val, "loss", "validation", "tab:orange")
    plot(accuracy, val, "top1", "top-1", "tab:green")
    if val and val[0]["k"] > 1:
        plot(accuracy, val, "topk", f"top-{val[0]['k']}", "tab:olive")
    plot(rate, train, "lr", "learning rate", "tab:red")
    for axes, title in ((losses, "loss"), (accuracy, "validation accuracy, %"), (rate, "learning rate")):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    unfinished = picture.with_suffix(".png.tmp")
    figure.savefig(unfinished, dpi=110, format="png")
    unfinished.replace(picture)
