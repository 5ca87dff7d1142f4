"""Pictures of a training batch, the confusion matrix and the most confident mistakes."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.loaders import EvalLoader
from tasks.classification.class_names import in_words
from tasks.classification.predictions import Predictions
from tasks.classification.scores import calibration_bins, calibration_error, has_finite_logits
from tasks.classification.tables import WORST
from utils.batches import Batch, stacked
from utils.fonts import legible
from utils.pictures import Pictures, Sheet, new_figure, restore, sheet, to_image
from utils.preprocessing import Preprocessing

MATRIX = 50  # maximum classes of a confusion matrix
NUMBERS = 20  # maximum classes for counts in its cells
VISIBLE = 0.005  # minimum share of a mixed label to show: less would be "0%"


def batch_sheet(
    batch: Batch, preprocessing: Preprocessing, class_names: Sequence[str], limit: int, smoothing: float = 0.0
) -> Image.Image:
    """Returns up to `limit` images of a training batch with their labels, and the shares of the labels of mixed images.

    Args: smoothing: of the labels of mixed images, which is left out.
    """
    names, pixels = in_words(class_names), restore(stacked(batch)[:limit], preprocessing)
    tiles = [(to_image(image), _caption(batch.targets[i], names, smoothing)) for i, image in enumerate(pixels)]
    size = "x".join(str(side) for side in pixels.shape[2:])
    return sheet(tiles, "Training images", f"as the model sees them, {size} pixels")


def _caption(target: Tensor, names: Sequence[str], smoothing: float) -> str:
    if not target.is_floating_point():
        return names[int(target)]
    shares = ((target - smoothing / len(names)) / (1 - smoothing)).tolist() if smoothing < 1 else target.tolist()
    parts = sorted(((share, label) for label, share in enumerate(shares) if share >= VISIBLE), reverse=True)
    return ", ".join(names[label] + (f" {share:.0%}" if share < 1 - VISIBLE else "") for share, label in parts)


def prediction_pictures(
    predictions: Predictions, val: EvalLoader, class_names: Sequence[str], temperature: float | None = None
) -> Pictures:
    """Returns drawing functions by name: "confusion"; "reliability", with finite logits; "mistakes", if any."""
    drawings: dict[str, Any] = {"confusion": lambda: confusion_figure(predictions, class_names)}
    if has_finite_logits(predictions):
        drawings["reliability"] = lambda: reliability_figure(predictions, temperature)
    if predictions.worst(1):
        drawings["mistakes"] = lambda: mistakes_sheet(predictions, val, class_names)
    return drawings


def reliability_figure(predictions: Predictions, temperature: float | None) -> Any:
    """Returns a figure: the accuracy of predictions by their confidence, as predicted and at a temperature, if any."""
    figure = new_figure(5, 4.6)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="grey", linewidth=1, linestyle="--", label="_nolegend_")
    scaled = [] if temperature is None else [(f"temperature {temperature:.2f}", temperature)]
    for title, at in (("as predicted", 1.0), *scaled):
        counts, confidence, accuracy = calibration_bins(predictions, at)
        used = counts > 0
        error = calibration_error(predictions, at)
        axes.plot(100 * confidence[used], 100 * accuracy[used], marker="o", label=f"{title}, ECE {error:.1f}%")
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("accuracy, %")
    axes.set_title("Reliability")
    axes.legend()
    return figure


def mistakes_sheet(predictions: Predictions, val: EvalLoader, class_names: Sequence[str]) -> Sheet:
    """Returns the images of the most confident wrong predictions, with both classes and the probability."""
    tiles, names = [], in_words(class_names)
    for entry in predictions.worst(WORST):
        wrong, right = names[int(predictions.predicted[entry])], names[int(predictions.labels[entry])]
        image = torch.from_numpy(val.sample(int(predictions.samples[entry])).image)
        tiles.append((to_image(image), f"{wrong} {predictions.confidence[entry]:.0%}, is {right}"))
    return Sheet(tiles, "Most confident mistakes", "predicted class and its probability, true class")


def confusion_figure(predictions: Predictions, class_names: Sequence[str]) -> Any:
    """Returns a figure: the confusion matrix of up to 50 classes, else the 30 classes with the lowest accuracy."""
    names = in_words(class_names)
    return _matrix(predictions, names) if len(names) <= MATRIX else _lowest(predictions, names, 30)


def _matrix(predictions: Predictions, names: Sequence[str]) -> Any:
    matrix = predictions.confusion(len(names))
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    side = max(4.5, 0.32 * len(names) + 2)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    shown = axes.imshow(100 * share.numpy(), cmap=_opaque("#08519c"), vmin=0, vmax=100)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="% of the class")
    if len(names) <= NUMBERS:
        for row, column in matrix.nonzero().tolist():
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, int(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("Confusion matrix" + (", samples" if len(names) <= NUMBERS else ""))
    return figure


def _opaque(color: str) -> Any:
    """Returns a colour map from transparent, which fits light and dark pages, to a colour."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list(color, [to_rgba(color, 0), to_rgba(color)])


def _lowest(predictions: Predictions, names: Sequence[str], count: int) -> Any:
    scores = sorted(predictions.per_class(len(names)), key=lambda score: (score.top1, score.label))[:count]
    figure = new_figure(9, 0.24 * len(scores) + 1.2)
    axes = figure.subplots()
    axes.barh(range(len(scores)), [score.top1 for score in scores], color="tab:blue")
    for place, score in enumerate(scores):
        other = "" if score.mistaken_for is None else f", mostly predicted as {_short(names[score.mistaken_for])}"
        axes.text(score.top1 + 1, place, f"{score.correct} of {score.samples}{other}", va="center", fontsize=8)
    axes.set_yticks(range(len(scores)), [_short(names[score.label]) for score in scores], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 160)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("top-1 accuracy, %")
    axes.set_title(f"The {len(scores)} of {len(names):,} classes with the lowest accuracy")
    return figure


def _short(name: str, longest: int = 24) -> str:
    """Returns the name of a class as the label of an axis."""
    name = legible(name)
    return name if len(name) <= longest else name[: longest - 1] + "…"
