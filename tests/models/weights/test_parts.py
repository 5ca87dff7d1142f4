"""Whole segmenters in every published layout: strict, lossless, and with what is new under a name."""

import copy
import sys
import types

import pytest
import torch

from models.weights.checks import WrongModelError
from models.weights.layouts import LAYOUTS, TRANSFORMERS_5
from models.weights.load import find_weights, load_composite, load_contents
from models.weights.parts import parts_from_original, parts_to_original, whole_from_original
from tests.models.heads.test_upernet import OPTIONS, peer, segmenter
from tests.models.weights.conftest import fill, filled, same
from tests.tools.errors import raises
from utils.checkpoints.safe_load import load_tensors

WHOLE = [LAYOUTS["original"], LAYOUTS["mmdetection"], LAYOUTS["transformers"], TRANSFORMERS_5]


@pytest.fixture(scope="module")
def model():
    return fill(segmenter())


@pytest.mark.parametrize("layout", WHOLE, ids=lambda layout: layout.name)
def test_a_segmenter_is_recognised_and_converts_back_to_the_same_bits(model, layout):
    stored = whole_from_original(model.state_dict(), layout, "backbone.")
    assert find_weights(stored, "x", "backbone.").layout.name == layout.name
    other = fill(segmenter(), seed=1)
    line = load_contents(other, {"state_dict": stored, "meta": {}}, "x")
    assert same(other, model) and "with its decode head and auxiliary head" in line


def test_the_state_of_transformers_model_converts_there_and_back():
    """Its names in memory, under backbone.swin, and a final norm that it never uses."""
    theirs, ours = peer(), segmenter()
    load_contents(ours, theirs.state_dict(), "theirs")
    back = whole_from_original(ours.state_dict(), TRANSFORMERS_5, "backbone.")
    expected = {
        name.replace("backbone.swin.", "backbone."): value
        for name, value in theirs.state_dict().items()
        if ".layernorm." not in name and "relative_position_index" not in name
    }
    assert back.keys() == expected.keys() and all(torch.equal(back[name], value) for name, value in expected.items())


# a block, a merging, norms and heads as the files of mmsegmentation 1.x and of the authors name them
AUTHORS = """
backbone.patch_embed.proj.weight backbone.layers.0.blocks.1.attn.qkv.bias backbone.layers.2.downsample.norm.weight
backbone.norm0.weight backbone.norm3.bias decode_head.conv_seg.bias decode_head.psp_modules.3.1.bn.running_mean
decode_head.psp_modules.0.1.conv.weight decode_head.bottleneck.bn.weight decode_head.lateral_convs.2.conv.weight
decode_head.fpn_convs.0.bn.num_batches_tracked decode_head.fpn_bottleneck.conv.weight
auxiliary_head.convs.0.bn.bias auxiliary_head.conv_seg.weight
""".split()
MM = """
backbone.patch_embed.projection.weight backbone.stages.0.blocks.1.attn.w_msa.qkv.bias
backbone.stages.2.downsample.norm.weight backbone.norm0.weight backbone.norm3.bias
backbone.stages.1.blocks.0.ffn.layers.0.0.weight decode_head.psp_modules.3.1.bn.running_mean
auxiliary_head.conv_seg.weight
""".split()


def test_names_are_those_of_the_published_files(model):
    assert set(AUTHORS) <= set(model.state_dict())
    assert set(MM) <= set(whole_from_original(model.state_dict(), LAYOUTS["mmdetection"], "backbone."))


def test_the_merging_of_mmsegmentation_is_reordered_in_norm_and_reduction(model):
    stored = whole_from_original(model.state_dict(), LAYOUTS["mmdetection"], "backbone.")
    own, name = model.state_dict(), "downsample.norm.weight"
    before, after = own[f"backbone.layers.0.{name}"], stored[f"backbone.stages.0.{name}"]
    assert torch.equal(after, before.view(4, 8)[[0, 2, 1, 3]].T.flatten()) and not torch.equal(after, before)


def test_a_missing_and_an_unexpected_tensor_are_named_as_the_authors_do(model):
    stored = whole_from_original(model.state_dict(), LAYOUTS["transformers"], "backbone.")
    stored["decode_head.wrong"] = stored.pop("decode_head.bottleneck.batch_norm.bias")
    with raises(WrongModelError, "x", "decode_head.bottleneck.bn.bias", "decode_head.wrong"):
        load_contents(segmenter(), stored, "x")


def test_other_classes_leave_only_the_classifiers_new(model):
    other = segmenter(classes=3)
    before = copy.deepcopy(other.state_dict())
    line = load_contents(other, {"model": model.state_dict()}, "x", head_for=["a", "b", "c"])
    assert line.endswith("new: decode_head.conv_seg, auxiliary_head.conv_seg")
    for name, value in other.state_dict().items():
        assert torch.equal(value, (before if "conv_seg" in name else model.state_dict())[name]), name
    with raises(WrongModelError, "x", "conv_seg"):
        load_contents(segmenter(classes=3), {"model": model.state_dict()}, "x")


def test_as_many_but_other_classes_get_new_classifiers_too(model):
    contents, names = {"model": model.state_dict(), "class_names": list("abcde")}, list("abcdf")
    assert "conv_seg" in load_contents(segmenter(), contents, "x", head_for=names)
    assert load_contents(segmenter(), contents, "x", head_for=list("abcde")).endswith("new: nothing")


@pytest.mark.parametrize("layout", ["original", "timm", "mmdetection", "transformers"])
def test_a_classifier_of_any_layout_gives_the_backbone_and_the_rest_is_named(layout):
    classifier = filled(**{**OPTIONS, "img_size": 224, "patch_size": 4})
    other = segmenter()
    stored = LAYOUTS[layout].from_original(classifier.state_dict())
    line = load_contents(other, stored, "x", head_for=["a"])
    assert "new: norm0, norm1, norm2, norm3, decode_head.conv_seg, decode_head.psp_modules" in line
    for name, value in classifier.state_dict().items():
        if not name.startswith(("head.", "norm.")):
            assert torch.equal(other.state_dict()[f"backbone.{name}"], value), name


def test_a_classifier_is_not_taken_for_a_segmenter():
    with raises(WrongModelError, "x", "decode head"):
        load_composite(segmenter(), filled(**{**OPTIONS, "img_size": 224, "patch_size": 4}).state_dict(), "x")


def test_a_checkpoint_of_mmengine_is_read_without_its_code(model, tmp_path, monkeypatch):
    """Its message hub pickles objects of the library, which is not installed."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = buffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    stored = whole_from_original(model.state_dict(), LAYOUTS["mmdetection"], "backbone.")
    hub = {"log_scalars": {"train/loss": buffer()}, "runtime_info": {"iter": 3}}
    torch.save({"state_dict": stored, "message_hub": hub, "meta": {"iter": 3}}, tmp_path / "iter_3.pth")
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    other = segmenter()
    load_contents(other, load_tensors(tmp_path / "iter_3.pth"), "iter_3.pth")
    assert same(other, model)


def test_parts_of_transformers_are_named_both_ways():
    ours = {"decode_head.conv_seg.weight": 0, "backbone.norm2.bias": 1, "auxiliary_head.convs.0.bn.weight": 2}
    theirs = parts_from_original(ours, LAYOUTS["transformers"])
    assert list(theirs) == [
        "decode_head.classifier.weight",
        "backbone.hidden_states_norms.stage3.bias",
        "auxiliary_head.convs.0.batch_norm.weight",
    ]
    assert parts_to_original(theirs, LAYOUTS["transformers"]) == ours
