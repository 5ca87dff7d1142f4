"""The picture of the first batch."""

import torch

from utils.batches import Batch
from utils.preprocessing import Preprocessing
from utils.training import batch_sheet
from utils.training.batch_sheet import SHOWN, draw_batch

NAMES = ["cat", "n01440764", "dog"]


def captions(monkeypatch, targets, names=NAMES):
    found = []
    monkeypatch.setattr(batch_sheet, "sheet", lambda tiles, *_: found.extend(caption for _, caption in tiles))
    draw_batch(Batch(torch.zeros(2, 3, 8, 8), targets, 1.0, True), Preprocessing(), names)
    return found


def test_labels_are_words(monkeypatch):
    assert captions(monkeypatch, torch.tensor([0, 1])) == ["cat", "tench"]


def test_mixed_labels_name_their_parts_and_smoothing_is_left_out(monkeypatch):
    mixed = torch.tensor([[0.30, 0.05, 0.65], [0.05, 0.90, 0.05]])
    assert captions(monkeypatch, mixed) == ["dog 65%, cat 30%", "tench 90%"]


def test_data_without_classes_have_no_captions(monkeypatch):
    assert captions(monkeypatch, torch.zeros(2, 7), names=[]) == ["", ""]
    assert captions(monkeypatch, {"boxes": 1}) == ["", ""]


def test_a_large_batch_is_shown_in_part():
    drawn = draw_batch(Batch(torch.zeros(100, 3, 8, 8), torch.zeros(100).long(), 1.0, True), Preprocessing(), NAMES)
    assert drawn.height < 1000 and SHOWN == 32
