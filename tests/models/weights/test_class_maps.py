"""Classes of ImageNet: rows of 22K heads, classes of a file, ImageNet-ReaL."""

import hashlib

import pytest
import torch
from timm.data import ImageNetInfo, RealLabelsImagenet

from models.weights.class_maps import known_classes, map_head, real_labels, rows_of_1k
from tests.tools.errors import raises
from utils.errors import ConfigError

SYNSETS = ImageNetInfo("imagenet-1k").label_names()


def test_the_rows_of_the_1k_classes():
    rows = rows_of_1k()
    assert len(set(rows)) == 1000 and rows[:3] == (359, 368, 460) and rows[850] == 5564
    text = "".join(f"{row}\n" for row in rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "844b5d131d31b69f63786a69144e749bfe08eaa52e8de8057831c7edb4402e04"  # of the published map


def test_heads_are_mapped_row_by_row():
    weight, bias = torch.arange(21841.0)[:, None].expand(-1, 2), torch.arange(21841.0)
    assert map_head(weight).shape == (1000, 2) and map_head(bias).tolist() == list(rows_of_1k())
    assert torch.equal(map_head(weight)[:, 1], map_head(bias))


@pytest.mark.parametrize("head", ["head.weight", "model.head.fc.weight", "classifier.weight", "fc.weight"])
@pytest.mark.parametrize(("rows", "likely"), [(1000, SYNSETS), (21841, SYNSETS), (999, None)])
def test_a_head_of_the_size_of_imagenet_makes_its_synsets_likely(head, rows, likely):
    weights = {head: torch.zeros(rows, 2), "norm.weight": torch.zeros(1000)}
    for contents in (weights, {"model": weights, "epoch": 3}):
        assert known_classes(contents) == (None, likely)


def test_the_class_names_of_a_file_are_known_if_they_are_a_list():
    assert known_classes({"class_names": ["a", "b"]}).names == ["a", "b"]
    assert known_classes({"class_names": "ab"}).names is None


def test_keys_that_are_no_names_and_heads_that_are_no_matrices_are_ignored():
    weights = {1: torch.zeros(1000, 2), None: torch.zeros(1), "head.weight": torch.zeros(1000), "fc.weight": 1000}
    assert known_classes({"model": weights}) == (None, None)


def test_real_labels_are_in_the_label_order_of_the_model():
    published = RealLabelsImagenet([""] * 50_000).real_labels
    assert real_labels(SYNSETS) == published
    cradle_or_teddy, soup_bowl = (f"ILSVRC2012_val_{i:08d}.JPEG" for i in (5, 4))
    assert published[cradle_or_teddy] == [516, 850] and published[soup_bowl] == [809]
    own = real_labels([SYNSETS[850], SYNSETS[809]])
    assert own[cradle_or_teddy] == [0] and own[soup_bowl] == [1] and own["ILSVRC2012_val_00000001.JPEG"] == []


def test_real_labels_of_other_classes_are_rejected():
    with raises(ConfigError, "TEST.REAL", "cat, dog"):
        real_labels([*SYNSETS[:3], "cat", "dog"])
