"""Tables of an evaluation."""

from types import SimpleNamespace

import torch

from tasks.classification.predictions import Predictions
from tasks.classification.tables import mistakes_table, per_class_table

PREDICTIONS = Predictions(
    *map(torch.tensor, ([0, 1, 2, 3, 4], [0, 0, 1, 3, 3], [0, 3, 1, 2, 0], [0.9, 0.5, 1, 0.5, 0.75]))
)
SOURCE = SimpleNamespace(name="val/{}.jpg".format)


def test_classes_that_have_samples_have_a_row():
    table = per_class_table(PREDICTIONS, ("a", "b", "c", "d"))
    assert table.head == ["class", "samples", "correct", "top1", "precision", "f1", "mostly_mistaken_for"]
    # class a is predicted twice, once rightly
    assert table.rows[0] == ["a", 2, 1, "50.00", "50.00", "50.00", "d"]
    assert table.rows[1] == ["b", 1, 1, "100.00", "100.00", "100.00", ""]
    assert table.rows[2][:4] == ["d", 2, 0, "0.00"] and len(table.rows) == 3


def test_synsets_are_named_in_words():
    table = per_class_table(PREDICTIONS, ("n01440764", "b", "c", "d"))
    assert table.head[-1] == "words" and [row[-1] for row in table.rows] == ["tench", "b", "d"]
    assert table.rows[2][6] in ("c", "n01440764")


def test_the_most_confident_mistakes_come_first():
    table = mistakes_table(PREDICTIONS, ("n01440764", "b", "c", "d"), SOURCE)
    assert table.rows[0] == ["val/4.jpg", "tench", "0.750", "d"] and len(table.rows) == 3
