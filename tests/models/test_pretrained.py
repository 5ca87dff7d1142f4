"""Weights are found, recognised, fitted, checked by name and shape, and loaded."""

import pytest
import torch

from models.errors import WeightsError
from models.layouts import LAYOUTS
from models.pretrained import find_weights, load_contents, load_weights
from models.registry import MODELS, build_model
from tests.models.test_registry import SMALL


def small(family="swin", **more):
    model = build_model(family, **{**SMALL, "num_classes": 5, **more})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture
def model():
    return small()


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_wrapped_prefixed_weights_with_derived_tensors_load(family, wrapper, prefix):
    source, target = small(family), small(family)
    state = {f"{prefix}{k}": v for k, v in source.state_dict().items()}
    state[f"{prefix}layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    state[f"{prefix}layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    line = load_contents(target, {wrapper: state, "epoch": 3} if wrapper else state, "x.pth")
    assert f"{wrapper or 'top level'}" in line and "original layout" in line
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_every_layout_is_recognised_and_leads_back_to_the_same_bits(family, layout):
    source, target = small(family, ape=layout != "torchvision"), small(family, ape=layout != "torchvision")
    stored = LAYOUTS[layout].from_original(source.state_dict())
    assert (set(stored) == set(source.state_dict())) == (layout == "original")
    found = find_weights(stored, "x")
    assert found.layout == layout and found.family == family
    load_weights(target, found)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize("layout", ["original", "timm", "mmdetection", "transformers"])
def test_a_renamed_and_a_missing_tensor_are_named(layout):
    source, target = small(), small()
    stored = LAYOUTS[layout].from_original(source.state_dict())
    last = next(name for name in stored if "norm" in name and name.endswith("weight"))
    broken = {name + ("x" if name == last else ""): v for name, v in stored.items()}
    with pytest.raises(WeightsError, match=r"1 missing: .*; 1 unexpected: .*weightx"):
        load_contents(target, broken, "x.pth")


def test_merged_patches_of_mmdetection_stand_in_the_order_of_unfold():
    """A merging written with torch's Unfold, as mmdetection's, gives our merging's output from converted weights."""
    from models.layers import PatchMerging

    merging, x = PatchMerging(6), torch.randn(2, 4, 8, 6)
    for p in merging.parameters():
        torch.nn.init.normal_(p)
    names = {f"layers.0.downsample.{k}": v for k, v in merging.state_dict().items()}
    theirs = LAYOUTS["mmdetection"].from_original(names)
    unfolded = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    normed = torch.nn.functional.layer_norm(
        unfolded, (24,), theirs["stages.0.downsample.norm.weight"], theirs["stages.0.downsample.norm.bias"]
    )
    expected = normed @ theirs["stages.0.downsample.reduction.weight"].T
    torch.testing.assert_close(merging(x).flatten(1, 2), expected)


def test_a_segmentation_checkpoint_gives_its_backbone():
    source, target = small(num_classes=5), small()
    stored = {f"backbone.{k}": v for k, v in LAYOUTS["mmdetection"].from_original(source.state_dict()).items()}
    stored = {k: v for k, v in stored.items() if "head" not in k}
    stored |= {"backbone.norm0.weight": torch.ones(8), "decode_head.conv_seg.weight": torch.zeros(3, 3, 1, 1)}
    found = find_weights({"state_dict": stored}, "x")
    assert set(found.ignored) == {"norm0.weight", "decode_head.conv_seg.weight"}
    line = load_weights(target, found, new_head=True)
    assert "2 ignored" in line and "a fresh head for 5 classes (the file has none)" in line
    with pytest.raises(WeightsError, match="no head"):
        _ = found.classes


def test_a_simmim_encoder_loads_with_its_old_names():
    source, target = small("swinv2"), small("swinv2")
    stored = {
        f"encoder.{k.replace('cpb_mlp', 'rpe_mlp')}": v for k, v in source.state_dict().items() if "head" not in k
    }
    stored |= {"encoder.mask_token": torch.zeros(1), "decoder.0.weight": torch.zeros(3)}
    found = find_weights({"model": stored}, "x")
    assert "decoder.0.weight" in found.ignored
    load_weights(target, found, new_head=True)
    assert torch.equal(target.norm.weight, source.norm.weight)


def test_another_family_is_named():
    for family, other in (("swin", "swinv2"), ("swinv2", "swin_mlp"), ("swin_mlp", "swin")):
        with pytest.raises(WeightsError, match=f"MODEL.TYPE {other}"):
            load_contents(small(family), small(other).state_dict(), "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fault_21_a_weight_that_is_not_finite_is_named(model, bad):
    state = dict(model.state_dict())
    state["norm.bias"] = torch.full((16,), bad)
    with pytest.raises(WeightsError, match="not finite: norm.bias"):
        find_weights(state, "x")


def test_fault_10_missing_unexpected_and_other_shapes_are_named(model):
    weights = dict(model.state_dict())
    weights["layers.0.odd"] = weights.pop("norm.weight")
    weights["norm.bias"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        load_contents(model, weights, "x.pth")
    assert "1 missing: norm.weight" in str(caught.value)
    assert "1 unexpected: layers.0.odd" in str(caught.value)
    assert "norm.bias (3,) for (16,)" in str(caught.value)


def test_another_number_of_classes_gets_a_fresh_head_only_when_asked(model):
    weights = small(num_classes=9).state_dict()
    with pytest.raises(WeightsError, match="the head has 9 classes, not 5"):
        load_contents(model, weights, "x.pth")
    head = model.head.weight.clone()
    assert "a fresh head for 5 classes (the file has 9)" in load_contents(model, weights, "x.pth", head_for=[])
    assert torch.equal(model.head.weight, head) and torch.equal(model.norm.weight, weights["norm.weight"])


def test_a_head_of_other_classes_is_not_taken_for_the_datas(model):
    """As many classes, but others: the file says which it was made for."""
    source, head = small(), model.head.weight.clone()
    contents = {"model": source.state_dict(), "class_names": list("abcde")}
    assert "a fresh head" in load_contents(model, contents, "x", head_for=list("fghij"))
    assert torch.equal(model.head.weight, head)
    assert "a fresh head" not in load_contents(model, contents, "x", head_for=list("abcde"))
    assert torch.equal(model.head.weight, source.head.weight)


def test_models_of_timm_load_by_their_own_names():
    source, target = (build_model("timm", model_name="resnet10t", img_size=32, num_classes=n) for n in (4, 4))
    assert "resnet" not in load_contents(target, {"model": source.state_dict()}, "x")
    assert torch.equal(target.fc.weight, source.fc.weight)
    other = build_model("timm", model_name="resnet10t", img_size=32, num_classes=7)
    with pytest.raises(WeightsError, match=r"fc.weight \(4, 512\) for \(7, 512\)"):
        load_contents(other, source.state_dict(), "x")
    assert "fresh fc.weight, fc.bias" in load_contents(other, source.state_dict(), "x", head_for=list("1234567"))


def test_a_file_without_weights_is_refused():
    with pytest.raises(WeightsError, match="no weights"):
        find_weights({"epoch": 1}, "x.pth")
