"""Pictures that explain a Swin's predictions, for scripts/predict.py --explain."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.pipeline.decoding import decode
from data.pipeline.transforms import Box, EvalTransformOptions, visible_box
from data.sources.files import FileSource
from models.explain import attention_rollout, class_activation
from models.registry import backbone_of
from scripts.open_model import ModelFile
from tasks.classification.class_names import in_words
from utils.batches import stacked
from utils.errors import ConfigError, did_you_mean
from utils.files import short_stem, write_errors, writing
from utils.fonts import legible
from utils.pictures import new_figure, restore, to_image
from utils.training.evaluate import predict

LARGEST = 1000  # pixels of the long side of a photograph
SMOOTH = 256  # minimum pixels of the long side of a heat map, which is interpolated
PANEL = 4.2  # inches of the long side of a panel
BELOW = 0.7  # inches below it, for the scale


@dataclass(frozen=True)
class Map:
    """A heat map (h, w), where dark is the smallest value; `scale`: the meaning of its values."""

    title: str
    values: Tensor
    scale: str


@dataclass(frozen=True)
class Photograph:
    """An image in full, and the box in it that the model sees."""

    image: Image.Image
    box: Box


def explain(opened: ModelFile, source: FileSource, folder: Path, chosen: str = "") -> Iterator[Path]:
    """Writes a PNG per readable image: the photograph, the evidence for a class, the attention.

    Args: chosen: the class, "" for the predicted one.
    Yields: the files. Raises: ConfigError for a model that is not a Swin classifier, or an unknown class;
    ResourceError.
    """
    model, task, names = opened.model, opened.task, in_words(opened.class_names)
    if backbone_of(model) is not model or not names:
        what = "an exported file" if opened.exported else type(model).__name__
        raise ConfigError("--explain", f"cannot explain {what}", "use a checkpoint of a Swin classifier")
    known = dict(zip((*opened.class_names, *names), names * 2, strict=True))  # synsets and words
    if chosen and chosen not in known:
        raise ConfigError("--class", f"the model has no class {chosen!r}", did_you_mean(chosen, names))
    swin: Any = model
    with write_errors(folder, "--explain"):
        folder.mkdir(parents=True, exist_ok=True)
    loader = task.loader(source, opened.info, on_bad="skip_any")
    for outputs, batch in predict(model, loader, task.forward, task.world):
        images, rows = stacked(batch), task.predictions(outputs, batch, opened.info, len(names))
        shares = [dict(zip(row.record["classes"], row.record["probabilities"], strict=True)) for row in rows]  # type: ignore[index]
        explained = [known[chosen] if chosen else next(iter(each)) for each in shares]  # "" if the logits are NaN
        evidence = class_activation(swin, images, [names.index(name) if name else 0 for name in explained])
        attention = attention_rollout(swin, images) if swin.family != "swin_mlp" else None
        for i, number in enumerate(batch.samples):
            if explained[i]:
                path = Path(source.name(number))
                target = folder / f"{number:0{len(str(len(source) - 1))}}_{short_stem(path)}.png"
                lines = [path.name, *_verdict(shares[i], explained[i], known.get(path.parent.name, ""))]
                maps = [Map("evidence (Grad-CAM)", evidence[i], "share of the strongest")]
                if attention is not None:
                    times = attention[i] * attention[i].numel()
                    maps.append(Map("attention (rollout)", times, "multiple of the mean"))
                _draw(target, _photograph(opened, source, number, images[i]), maps, lines)
                yield target


def _verdict(shares: dict[str, float], explained: str, true: str) -> list[str]:
    """Returns lines: the predicted class, with the true one if it is known; the explained one if it is another."""
    predicted = next(iter(shares))
    first = f"predicted {predicted} {shares[predicted]:.1%}" + (f", true class {true}" if true else "")
    return [first, *([f"evidence for {explained} {shares[explained]:.1%}"] if explained != predicted else [])]


def _photograph(opened: ModelFile, source: FileSource, number: int, seen: Tensor) -> Photograph:
    """Returns a photograph, or what the model sees of an image with more bands than a photograph."""
    if opened.channels not in (1, 3):
        image = to_image(restore(seen[None], opened.preprocessing)[0, :3])
        return Photograph(image, (0, 0, *image.size))
    options = EvalTransformOptions.from_config(opened.cfg, opened.channels, opened.preprocessing.crop_pct)
    record = source[number]
    image = decode(record.data, record.name, opened.info.upright)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    larger = max(opened.size) / min(image.size)
    if larger > 1:  # as the model sees it, rather than single pixels
        image = image.resize([round(side * larger) for side in image.size], Image.Resampling.BICUBIC)
    return Photograph(image, visible_box((image.height, image.width), options))


def _draw(target: Path, photo: Photograph, maps: list[Map], lines: list[str]) -> None:
    width, height = photo.image.size
    wide, high = (max(PANEL * side / max(width, height), least) for side, least in ((width, 2.6), (height, 0.6)))
    above = 0.4 + 0.22 * len(lines)
    columns, total = 1 + len(maps), above + high + BELOW
    figure = new_figure(columns * (wide + 0.15) + 0.15, total)
    figure.set_layout_engine(None)
    edge = 0.15 / figure.get_figwidth()
    figure.subplots_adjust(edge, BELOW / total, 1 - edge, 1 - above / total, wspace=0.15 / wide)
    figure.suptitle("\n".join(map(legible, lines)), y=1 - 0.08 / total, fontsize=11)
    first, *others = figure.subplots(1, columns)
    whole = photo.box == (0, 0, width, height)
    first.set_title("photograph" if whole else "photograph, seen within the frame", fontsize=9)
    extent = (0, width, height, 0)  # in pixels from the corner, like the box
    first.imshow(photo.image, cmap="gray", extent=extent)
    for axes, each in zip(others, maps, strict=True):
        axes.set_title(legible(each.title), fontsize=9)
        # in colour, the map would be hard to read
        axes.imshow(photo.image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=extent)
        _draw_map(axes, photo.box, each, high)
    left, top, right, bottom = photo.box
    for axes in (first, *others) if not whole else ():
        axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="white", linewidth=1)
    for axes in (first, *others):
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
    with writing(target, "--explain") as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _draw_map(axes: Any, box: Box, each: Map, high: float) -> None:
    """Draws a heat map over its part of the photograph, with its scale below. Args: high: of the axes, in inches."""
    left, top, right, bottom = box
    scale = max(1.0, SMOOTH / max(bottom - top, right - left))
    size = [max(1, round(scale * side)) for side in (bottom - top, right - left)]
    values: np.ndarray = F.interpolate(each.values.float().cpu()[None, None], size, mode="bilinear")[0, 0].numpy()
    shown = axes.imshow(values, cmap="inferno", alpha=0.55, extent=(left, right, bottom, top))
    bar = axes.figure.colorbar(
        shown, cax=axes.inset_axes((0.1, -0.25 / high, 0.8, 0.12 / high)), orientation="horizontal"
    )
    bar.set_label(each.scale, fontsize=8)
    bar.ax.tick_params(labelsize=8)
