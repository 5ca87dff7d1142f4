"""Pictures of a training batch and of an evaluation."""

import numpy as np
import torch

from tasks.classification import pictures
from tasks.classification.pictures import batch_sheet, confusion_figure, mistakes_sheet, prediction_pictures
from tasks.classification.predictions import Predictions
from tests.tools.builders import HeldOut
from utils.batches import Batch
from utils.pictures import HEAD, TILE, as_image
from utils.preprocessing import Preprocessing

RED = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(3, 3, 8, 8)
PREDICTIONS = Predictions(*map(torch.tensor, ([0, 1, 2], [0, 1, 1], [0, 0, 1], [0.5, 0.75, 1.0])))
VAL, CLASSES = HeldOut([Batch(RED, None)]), ["class 0", "class 1"]
NAMES = ["cat", "n01440764", "dog"]


def captions(monkeypatch, draw):
    found = []
    monkeypatch.setattr(pictures, "sheet", lambda tiles, *_: found.extend(caption for _, caption in tiles))
    draw()
    return found


def shown(monkeypatch, targets, smoothing=0.0):
    batch = Batch(torch.zeros(2, 3, 8, 8), targets)
    return captions(monkeypatch, lambda: batch_sheet(batch, Preprocessing(), NAMES, 32, smoothing))


def test_labels_are_words(monkeypatch):
    assert shown(monkeypatch, torch.tensor([0, 1])) == ["cat", "tench"]


def test_mixed_labels_name_both_parts_without_smoothing(monkeypatch):
    """0.1 of smoothing over three classes; the small part of a mix is as visible as the large one."""
    smooth = torch.tensor([[0.35, 0.0, 0.65], [0.06, 0.94, 0.0]]) * 0.9 + 0.1 / 3
    assert shown(monkeypatch, smooth, 0.1) == ["dog 65%, cat 35%", "tench 94%, cat 6%"]
    assert shown(monkeypatch, torch.eye(3)[:2] * 0.9 + 0.1 / 3, 0.1) == ["cat", "tench"]
    assert shown(monkeypatch, torch.tensor([[0.25, 0.75, 0.0], [1 / 3, 1 / 3, 1 / 3]]), 1.0)[0] == "tench 75%, cat 25%"


def test_a_large_batch_is_shown_in_part():
    batch = Batch(torch.zeros(100, 3, 8, 8), torch.zeros(100).long())
    assert batch_sheet(batch, Preprocessing(), NAMES, 32).height < 1000


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_mistakes_show_the_image_and_both_classes():
    ((_, caption),) = mistakes_sheet(PREDICTIONS, VAL, CLASSES).tiles
    assert caption == "class 0 75%, is class 1"


def test_the_picture_of_a_mistake_has_its_pixels():
    drawn = np.asarray(as_image(prediction_pictures(PREDICTIONS, VAL, CLASSES)["mistakes"]()))
    assert drawn[HEAD + TILE // 2, 14 + TILE // 2].tolist() == [255, 0, 0]


def test_without_a_mistake_there_is_only_the_matrix():
    right = Predictions(*map(torch.tensor, ([0], [0], [0], [0.5])))
    drawings = prediction_pictures(right, VAL, CLASSES)
    assert list(drawings) == ["confusion"]
    image = as_image(drawings["confusion"]())
    assert min(image.size) > 300 and len(image.convert("L").getcolors()) > 10


def test_a_small_matrix_has_counts_and_a_larger_one_colours_only():
    assert sorted(texts(confusion_figure(PREDICTIONS, ["a", "b"]))) == ["1", "1", "1"]
    assert texts(confusion_figure(PREDICTIONS, [str(i) for i in range(30)])) == []


def test_a_matrix_is_transparent_where_it_is_empty():
    """So that it fits a dark page."""
    (shown,) = confusion_figure(PREDICTIONS, ["a", "b"]).axes[0].images
    assert shown.to_rgba([0.0, 50.0, 100.0])[:, 3].round(2).tolist() == [0, 0.5, 1]


def test_many_classes_are_reduced_to_those_with_the_lowest_accuracy():
    figure = confusion_figure(PREDICTIONS, [f"name {i}" for i in range(51)])
    assert texts(figure) == ["1 of 2, mostly predicted as name 0", "1 of 1"]
    assert figure.axes[0].get_title() == "The 2 of 51 classes with the lowest accuracy"


def test_names_that_no_font_has_are_spelt_out_on_the_axes():
    labels = confusion_figure(PREDICTIONS, ["Kirche Ä", "\U0001096b"]).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["Kirche Ä", "<U+1096B>"]
