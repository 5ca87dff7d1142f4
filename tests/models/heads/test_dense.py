"""What training needs of a model with heads, on a detector."""

import re

from torch import nn

from models.heads.dense import DenseModel
from models.registry import build_model
from tests.models.detection.cases import BACKBONE, detector


def test_heads_are_everything_but_the_backbone():
    model = detector("mask_rcnn")
    heads = {id(p) for p in model.get_classifier().parameters()}
    assert heads == {id(p) for name, p in model.named_parameters() if not name.startswith("backbone.")}
    assert model.encoder is model.backbone and len(model.stages()) == 4 and len(model.feature_info) == 4


def test_decay_follows_the_released_rule():
    model = detector("cascade_mask_rcnn")
    kept = {name for name, _ in model.named_parameters() if not model.decays(name)}
    assert "backbone.norm0.weight" in kept and "backbone.layers.0.downsample.norm.bias" in kept
    assert "backbone.layers.1.blocks.1.attn.relative_position_bias_table" in kept
    assert not any(name.startswith(("neck.", "rpn_head.", "roi_head.")) for name in kept)
    assert model.decays("roi_head.bbox_head.0.shared_convs.0.bn.weight")
    assert model.decays("backbone.layers.0.blocks.0.attn.qkv.bias")


def test_groups_for_layer_wise_decay_match_the_backbone_alone():
    model = detector("mask_rcnn")
    groups = model.group_matcher()
    patterns = [groups["stem"], *(pattern for pattern, _ in groups["blocks"])]
    matched = {name for name, _ in model.named_parameters() if any(re.match(each, name) for each in patterns)}
    backbone = {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
    assert matched == {name for name in backbone if not re.match(r"backbone\.norm\d", name)}


def test_freezing_and_checkpointing_reach_the_backbone():
    model = detector("mask_rcnn")
    model.freeze(2)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert any(name.startswith("backbone.layers.0.") for name in frozen) and all("backbone" in name for name in frozen)
    model.set_grad_checkpointing()
    assert model.pretrained_windows() == []


def test_the_windows_of_pre_training_are_the_backbones():
    backbone = build_model("swinv2", num_classes=0, dense=True, **BACKBONE)
    model = DenseModel(backbone, 3)
    assert isinstance(model, nn.Module) and model.pretrained_windows() == backbone.pretrained_windows() != []
