"""The confusion matrix and the most confident mistakes of an evaluation, as pictures."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from utils.class_words import in_words
from utils.evaluation.answers import Answers
from utils.pictures import Pictures, new_figure, rendered, sheet, to_image

MATRIX = 50  # classes that a confusion matrix can show
NUMBERS = 20  # classes up to which its cells have room for counts
WORST = 24  # mistakes on a sheet


class Gallery(Protocol):
    """The images of an evaluation, as the model sees them before normalisation."""

    class_names: Sequence[str]

    def pixels(self, index: int) -> Tensor:
        """Returns uint8 (C, H, W). Raises: DataError."""
        ...


def answer_pictures(answers: Answers, gallery: Gallery) -> Pictures:
    """Returns functions that draw, by name: "confusion" and, if there are any, "mistakes"."""
    drawings = {"confusion": lambda: rendered(confusion_figure(answers, gallery.class_names))}
    if answers.worst(1):
        drawings["mistakes"] = lambda: mistakes_sheet(answers, gallery)
    return drawings


def mistakes_sheet(answers: Answers, gallery: Gallery) -> Image.Image:
    """Returns the images of the most confident wrong answers, with both classes and the probability."""
    tiles, names = [], in_words(gallery.class_names)
    for index in answers.worst(WORST):
        wrong, right = names[int(answers.predicted[index])], names[int(answers.labels[index])]
        tiles.append((to_image(gallery.pixels(index)), f"{wrong} {answers.confidence[index]:.0%}, is {right}"))
    return sheet(tiles, "Most confident mistakes", "predicted class and its probability, true class")


def confusion_figure(answers: Answers, class_names: Sequence[str]) -> Any:
    """Returns a figure: the confusion matrix of up to 50 classes, or the 30 of more that have the lowest accuracy."""
    names = in_words(class_names)
    return _matrix(answers, names) if len(names) <= MATRIX else _lowest(answers, names, 30)


def _matrix(answers: Answers, names: Sequence[str]) -> Any:
    matrix = answers.confusion(len(names))
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    side = max(4.5, 0.32 * len(names) + 2)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    shown = axes.imshow(100 * share.numpy(), cmap="Blues", vmin=0, vmax=100)
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


def _lowest(answers: Answers, names: Sequence[str], count: int) -> Any:
    scores = sorted(answers.per_class(len(names)), key=lambda score: (score.top1, score.label))[:count]
    figure = new_figure(9, 0.24 * len(scores) + 1.2)
    axes = figure.subplots()
    axes.barh(range(len(scores)), [score.top1 for score in scores], color="tab:blue")
    for place, score in enumerate(scores):
        other = "" if score.mistaken_for is None else f", mostly taken for {_short(names[score.mistaken_for])}"
        axes.text(score.top1 + 1, place, f"{score.correct} of {score.samples}{other}", va="center", fontsize=8)
    axes.set_yticks(range(len(scores)), [_short(names[score.label]) for score in scores], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 160)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("top-1 accuracy, %")
    axes.set_title(f"The {len(scores)} of {len(names):,} classes with the lowest accuracy")
    return figure


def _short(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
