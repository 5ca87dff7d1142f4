"""Weights are found, checked by name and shape, and loaded."""

import pytest
import torch

from models.errors import WeightsError
from models.pretrained import count_classes, find_weights, load_weights
from models.registry import build_model
from tests.models.test_registry import SMALL


@pytest.fixture
def model():
    return build_model("swin", **SMALL, num_classes=5)


def test_wrapped_prefixed_weights_with_derived_tensors_load(model):
    source = build_model("swin", **SMALL, num_classes=5)
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    state["module.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    weights, place = find_weights({"model": state, "epoch": 3}, "x.pth")
    assert place == "model" and count_classes(weights, "x.pth") == 5
    load_weights(model, weights, "x.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_averaged_weights_come_first():
    weights, place = find_weights({"model": {"head.weight": torch.zeros(2)}, "model_ema": {"a": torch.ones(1)}}, "x")
    assert place == "model_ema" and list(weights) == ["a"]


def test_missing_unexpected_and_other_shapes_are_named(model):
    weights = dict(model.state_dict())
    weights["layers.0.odd"] = weights.pop("norm.weight")
    weights["norm.bias"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, weights, "x.pth")
    assert "1 missing: norm.weight" in str(caught.value)
    assert "1 unexpected: layers.0.odd" in str(caught.value)
    assert "norm.bias (3,) for (16,)" in str(caught.value)


def test_another_number_of_classes_gets_a_fresh_head_only_when_asked(model):
    weights = build_model("swin", **SMALL, num_classes=9).state_dict()
    with pytest.raises(WeightsError, match=r"head.weight \(9, 16\) for \(5, 16\)"):
        load_weights(model, weights, "x.pth")
    head = model.head.weight.clone()
    assert "fresh head for 5 classes" in load_weights(model, weights, "x.pth", new_head=True)
    assert torch.equal(model.head.weight, head) and torch.equal(model.norm.weight, weights["norm.weight"])


def test_a_file_without_weights_is_refused():
    with pytest.raises(WeightsError, match="no weights"):
        find_weights({"epoch": 1}, "x.pth")
    with pytest.raises(WeightsError, match=r"no head\.weight"):
        count_classes({}, "x.pth")
