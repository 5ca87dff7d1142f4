"""Pictures of an evaluation."""

import numpy as np
import torch

from tests.tools.builders import HeldOut
from utils.evaluation.answers import Answers
from utils.evaluation.pictures import answer_pictures, confusion_figure, mistakes_sheet
from utils.pictures import HEAD, TILE

RED = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(3, 3, 8, 8)
ANSWERS = Answers(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.75, 1.0]))


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_mistakes_show_the_image_and_both_classes(monkeypatch):
    captions = []
    monkeypatch.setattr(
        "utils.evaluation.pictures.sheet", lambda tiles, *_: captions.extend(caption for _, caption in tiles)
    )
    mistakes_sheet(ANSWERS, HeldOut([(RED, None)], 2))
    assert captions == ["class 0 75%, is class 1"]


def test_the_picture_of_a_mistake_has_its_pixels():
    drawn = np.asarray(answer_pictures(ANSWERS, HeldOut([(RED, None)], 2))["mistakes"]())
    assert drawn[HEAD + TILE // 2, 14 + TILE // 2].tolist() == [255, 0, 0]


def test_without_a_mistake_there_is_only_the_matrix():
    right = Answers(torch.tensor([0]), torch.tensor([0]), torch.tensor([0.5]))
    drawings = answer_pictures(right, HeldOut([(RED, None)], 2))
    assert list(drawings) == ["confusion"]
    image = drawings["confusion"]()
    assert min(image.size) > 300 and len(image.convert("L").getcolors()) > 10


def test_a_small_matrix_has_counts_and_a_larger_one_colours_only():
    assert sorted(texts(confusion_figure(ANSWERS, ["a", "b"]))) == ["1", "1", "1"]
    assert texts(confusion_figure(ANSWERS, [str(i) for i in range(30)])) == []


def test_many_classes_are_reduced_to_those_with_the_lowest_accuracy():
    figure = confusion_figure(ANSWERS, [f"name {i}" for i in range(51)])
    assert texts(figure) == ["1 of 2, mostly taken for name 0", "1 of 1"]
    assert figure.axes[0].get_title() == "The 2 of 51 classes with the lowest accuracy"
