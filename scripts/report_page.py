"""Contents of a report: pictures for light and dark mode, and facts from a run's log and env.json."""

import base64
import html
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from scripts.run_folder import Run
from utils.pictures import TILE, Sheet

# titles of pictures and tables by the names that tasks give them, in the order of the page
HEADINGS = {
    "first_batch": "First training batch",
    "per_class": "Results per class",
    "confusion": "Confusion matrix",
    "mistakes": "Most confident mistakes",
    "reliability": "Reliability of the probabilities",
}
TIPS = 200  # maximum points of a line with a tip
START = (
    *("data:", "machine:", "model:", "optimizer:", "precision:"),
    *("global batch", "learning rate", "plan:", "weights:"),
)


def heading(name: str) -> str:
    """Returns the title of a picture or table of an evaluation."""
    return HEADINGS.get(name, name.replace("_", " ").capitalize())


def in_order(headings: Iterable[str]) -> list[str]:
    """Returns headings in the order of the page, without duplicates; others last."""
    order = list(HEADINGS.values())
    return sorted(dict.fromkeys(headings), key=lambda each: order.index(each) if each in order else len(order))


def as_html(picture: Any) -> str:
    """Returns a Matplotlib figure as inline SVG in the colour of the page's text, a sheet as captioned images, and
    another image as one."""
    if isinstance(picture, Sheet):
        tiles = (f"<figure>{_img(_tile(image))}{_caption(caption)}</figure>" for image, caption in picture.tiles)
        return f'<p class="faint">{html.escape(picture.subtitle)}</p><div class="gallery">{"".join(tiles)}</div>'
    if isinstance(picture, Image.Image):
        return f'<div class="wide">{_img(picture)}</div>'
    buffer = io.StringIO()
    picture.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(r"(?s)<metadata>.*?</metadata>|^.*?(?=<svg)", "", buffer.getvalue())
    svg = re.sub(r"\b(stroke|fill): #000000", r"\1: currentColor", svg).replace("<svg", '<svg class="plot"', 1)
    return svg.replace("</svg>", f"{''.join(_tips(picture))}</svg>")


def _tips(figure: Any) -> Iterator[str]:
    """Yields invisible circles over the points of all lines, whose values appear when the mouse is on them."""
    scale = 72 / figure.dpi  # the units of the SVG are points
    for axes in figure.axes:
        for line in (each for each in axes.lines if each.get_label() != "_nolegend_"):
            title = axes.get_title() if line.get_label().startswith("_") else line.get_label()
            points = [point for point in line.get_xydata().tolist() if point[1] == point[1]]
            for x, y in points[:: 1 + len(points) // TIPS]:
                left, up = axes.transData.transform((x, y)) * scale
                tip = html.escape(f"{title}: {y:.4g} at {x:.4g}")
                place = f'cx="{left:.1f}" cy="{72 * figure.get_figheight() - up:.1f}"'
                yield f'<circle {place} r="4"><title>{tip}</title></circle>'


def _caption(text: str) -> str:
    return f"<figcaption>{html.escape(text)}</figcaption>"


def _tile(image: Image.Image) -> Image.Image:
    """Returns an image at the size of a tile if it is larger."""
    copy = image.copy()
    copy.thumbnail((2 * TILE, 2 * TILE), Image.Resampling.LANCZOS)
    return copy


def _img(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="">'


def saved_pictures(folder: Path) -> dict[str, str]:
    """Returns the pictures that the run has written, such as its first batch and reconstructions."""
    found = sorted((folder / "pictures").glob("*.png"))
    names = {path.stem.removeprefix("train_").removeprefix("val_"): path for path in found}
    return {heading(name): as_html(Image.open(path)) for name, path in names.items()}


def log_lines(folder: Path) -> list[str]:
    """Returns the messages of log.txt, without their times."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return [re.sub(r"^\[[^\]]*\] ", "", line) for line in lines]


def environment(lines: Sequence[str]) -> list[str]:
    """Returns the messages that describe the last start of a run, with the names of files only.

    Args: lines: see `log_lines`.
    """
    last = {start: line for line in lines for start in START if line.startswith(start)}
    return [re.sub(r"(?<!\S)/\S*/(?=\w)", "", line) for line in last.values()]


def facts(run: Run) -> Mapping[str, str]:
    """Returns the start time, learning rates and gradient norms of a run."""
    rates = [line["lr"] for line in run.train if line.get("lr") is not None]
    norms = [line["grad_norm"] for line in run.train if line.get("grad_norm") is not None]
    return {
        "started": _started(run.folder),
        "learning rate": f"up to {max(rates):.3g}, last {rates[-1]:.3g}" if rates else "",
        "gradient norm": f"median {median(norms):.3g}, largest {max(norms):.3g}" if norms else "",
    }


def _started(folder: Path) -> str:
    """Returns the date and time in env.json, "" if it cannot be read."""
    try:
        started = str(json.loads((folder / "env.json").read_text(encoding="utf-8"))["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return started[:16].replace("T", " ") + (" UTC" if started.endswith("+00:00") else "")
