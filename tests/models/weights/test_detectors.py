"""Whole detectors in the published layouts: strict, lossless, and with what is new under a name."""

import copy
import json
from pathlib import Path

import pytest
import torch

from models.detection.detector import DETECTORS, Detector
from models.registry import build_model
from models.weights.checks import WrongModelError
from models.weights.layouts import LAYOUTS
from models.weights.load import find_weights, load_composite, load_contents
from models.weights.parts import whole_from_original
from tests.models.detection.cases import BACKBONE, detector
from tests.models.weights.conftest import fill, filled, same
from tests.tools.builders import SIZES
from tests.tools.errors import raises

# names and shapes of mmdetection 3.3's models at the published sizes, but for the backbone
RELEASED = json.loads((Path(__file__).parent / "detectors.json").read_text())


@pytest.fixture(scope="module", params=DETECTORS)
def model(request):
    own = fill(detector(request.param))
    own.kind = request.param
    return own


def new(model, classes=None, seed=1):
    if classes is None:
        return fill(detector(model.kind), seed)
    backbone = build_model("swin", num_classes=0, dense=True, **BACKBONE)
    return Detector(backbone, classes, model.options)


@pytest.mark.parametrize("wrapped", ["state_dict", "model"])
@pytest.mark.parametrize("layout", ["original", "mmdetection"])
def test_a_detector_is_recognised_and_converts_back_to_the_same_bits(model, layout, wrapped):
    stored = whole_from_original(model.state_dict(), LAYOUTS[layout], "backbone.")
    assert find_weights(stored, "x", "backbone.").layout.name == layout
    other = new(model)
    line = load_contents(other, {wrapped: stored, "meta": {"CLASSES": ("a",) * 5, "epoch": 36}}, "x")
    assert same(other, model) and "with its neck and rpn head and roi head" in line
    back = whole_from_original(other.state_dict(), LAYOUTS[layout], "backbone.")
    assert back.keys() == stored.keys() and all(torch.equal(back[name], value) for name, value in stored.items())


def test_files_of_several_processes_and_with_position_indices_load(model):
    stored = {f"module.{name}": value for name, value in model.state_dict().items()}
    stored["module.backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    other = new(model)
    load_contents(other, {"state_dict": stored}, "x")
    assert same(other, model)


@pytest.mark.parametrize("name", DETECTORS)
def test_names_and_shapes_are_those_of_the_published_models(name):
    with torch.device("meta"):
        backbone = build_model("swin", num_classes=0, dense=True, window_size=7, **SIZES["tiny"])
        own = Detector(backbone, 80, DETECTORS[name]).state_dict()
    stored = whole_from_original(own, LAYOUTS["mmdetection"], "backbone.")
    heads = {key: list(value.shape) for key, value in stored.items() if not key.startswith("backbone.")}
    assert heads == RELEASED[name]["heads"]
    indices = RELEASED[name]["indices"]  # stored in files, computed here
    assert len([key for key in stored if key.startswith("backbone.")]) + indices == RELEASED[name]["backbone"]


def test_missing_unexpected_and_misshapen_tensors_are_named(model):
    stored = dict(model.state_dict())
    stored["roi_head.wrong"] = stored.pop("rpn_head.rpn_cls.bias")
    with raises(WrongModelError, "x", "rpn_head.rpn_cls.bias", "roi_head.wrong"):
        load_contents(new(model), stored, "x")
    stored = {**model.state_dict(), "neck.fpn_convs.0.conv.bias": torch.zeros(3)}
    with raises(WrongModelError, "x", "neck.fpn_convs.0.conv.bias (3,) for (16,)"):
        load_contents(new(model), stored, "x")


def test_the_other_detector_is_refused():
    with raises(WrongModelError, "x", "roi_head.bbox_head.fc_cls.weight"):
        load_contents(detector("mask_rcnn"), detector("cascade_mask_rcnn").state_dict(), "x")


def test_a_detector_without_masks_is_not_taken_for_one_with_masks(model):
    boxes = detector(model.kind, masks=False)
    with raises(WrongModelError, "x", "mask_head"):
        load_contents(new(model), boxes.state_dict(), "x")


def test_other_classes_leave_only_the_classifiers_new(model):
    for classes in (3, 5):  # as many, but others, too
        other = new(model, classes)
        before = copy.deepcopy(other.state_dict())
        names = [f"class {i}" for i in range(classes)]
        line = load_contents(other, {"model": model.state_dict(), "class_names": list("abcde")}, "x", head_for=names)
        assert "new: roi_head.bbox_head, roi_head.mask_head" in line
        for name, value in other.state_dict().items():
            fresh = any(word in name for word in ("fc_cls", "fc_reg", "conv_logits"))
            assert torch.equal(value, (before if fresh else model.state_dict())[name]), name


@pytest.mark.parametrize("layout", ["original", "timm", "mmdetection"])
def test_a_classifier_gives_the_backbone_and_the_rest_is_named(model, layout):
    classifier = filled(**{**BACKBONE, "img_size": 224, "patch_size": 4})
    other = new(model)
    line = load_contents(other, LAYOUTS[layout].from_original(classifier.state_dict()), "x", head_for=["a"])
    assert "new: norm0, norm1, norm2, norm3, neck.lateral_convs, neck.fpn_convs, rpn_head.rpn_conv" in line
    for name, value in classifier.state_dict().items():
        if not name.startswith(("head.", "norm.")):
            assert torch.equal(other.state_dict()[f"backbone.{name}"], value), name


def test_a_classifier_is_not_taken_for_a_detector(model):
    classifier = filled(**{**BACKBONE, "img_size": 224, "patch_size": 4})
    with raises(WrongModelError, "x", "neck"):
        load_composite(new(model), classifier.state_dict(), "x")
