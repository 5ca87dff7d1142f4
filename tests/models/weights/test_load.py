"""Weights are found, recognised, fitted, checked by name and shape, and loaded."""

import re

import pytest
import torch

from models.errors import WeightsError
from models.registry import MODELS, build_model
from models.weights.class_maps import class_names_of
from models.weights.layouts import LAYOUTS
from models.weights.load import find_weights, load_contents, load_weights
from tests.models.test_registry import SMALL

# mmpretrain stores V1 as mmdetection does, mmdetection has no V2
MM_CANNOT = [("swin", "mmpretrain"), ("swinv2", "mmdetection")]


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


BOTH = [(family, layout) for family in ("swin", "swinv2") for layout in sorted(LAYOUTS)]


@pytest.mark.parametrize(("family", "layout"), [b for b in BOTH if b not in MM_CANNOT])
def test_every_layout_is_recognised_and_leads_back_to_the_same_bits(family, layout):
    source, target = small(family, ape=layout != "torchvision"), small(family, ape=layout != "torchvision")
    stored = LAYOUTS[layout].from_original(source.state_dict())
    assert (set(stored) == set(source.state_dict())) == (layout == "original")
    found = find_weights(stored, "x")
    assert found.layout.name == layout and found.family == family
    load_weights(target, found)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize(("family", "layout"), [b for b in BOTH if b not in MM_CANNOT])
@pytest.mark.parametrize("part", ["norm", "attn|attention|w_msa"])
def test_a_renamed_and_a_missing_tensor_are_named_as_the_file_names_them(family, layout, part):
    source, target = small(family), small(family)
    stored = LAYOUTS[layout].from_original(source.state_dict())
    last = next(name for name in stored if re.search(part, name) and name.endswith("weight"))
    short = re.escape(last.removeprefix(LAYOUTS[layout].prefix).removeprefix(LAYOUTS[layout].prefix_v2))
    broken = {name + ("x" if name == last else ""): v for name, v in stored.items()}
    with pytest.raises(WeightsError, match=rf"1 missing: {short}; 1 unexpected: {short}x:"):
        load_contents(target, broken, "x.pth")
    del broken[last + "x"]
    with pytest.raises(WeightsError, match=rf"1 missing: {short}:"):
        load_contents(target, broken, "x.pth")


MM_NAMES = """
backbone.patch_embed.projection.weight backbone.patch_embed.norm.bias backbone.norm1.weight head.fc.bias
backbone.stages.0.blocks.1.norm1.weight backbone.stages.1.blocks.0.attn.w_msa.qkv.weight
backbone.stages.1.blocks.0.attn.w_msa.proj.bias backbone.stages.0.blocks.0.ffn.layers.0.0.weight
backbone.stages.0.blocks.0.ffn.layers.1.bias
""".split()
MM_V1_NAMES = """
backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table backbone.stages.0.downsample.norm.weight
backbone.stages.0.downsample.reduction.weight backbone.stages.0.blocks.0.attn.w_msa.qkv.bias
""".split()
MM_V2_NAMES = """
backbone.stages.1.downsample.norm.weight backbone.stages.1.downsample.reduction.weight
backbone.stages.0.blocks.0.attn.w_msa.logit_scale backbone.stages.0.blocks.0.attn.w_msa.cpb_mlp.2.weight
backbone.stages.0.blocks.0.attn.w_msa.q_bias backbone.stages.0.blocks.0.attn.w_msa.v_bias
""".split()


def test_names_of_mm_are_those_of_its_own_models():
    """As mmdetection 3.3 and mmpretrain 1.2 name them; outputs of converted weights were equal to 6e-7 in both."""
    v1 = LAYOUTS["mmdetection"].from_original(small().state_dict())
    v2 = LAYOUTS["mmpretrain"].from_original(small("swinv2").state_dict())
    assert set(MM_NAMES + MM_V1_NAMES) <= set(v1) and not set(MM_V2_NAMES) & set(v1)
    assert set(MM_NAMES + MM_V2_NAMES) <= set(v2) and not set(MM_V1_NAMES) & set(v2)


def test_what_transformers_keeps_beside_a_classifier_is_ignored():
    stored = LAYOUTS["transformers"].from_original(small().state_dict())
    stored |= {"swin.embeddings.mask_token": torch.zeros(1, 1, 8), "hidden_states_norms.stage1.weight": torch.ones(8)}
    assert "2 ignored" in load_contents(small(), stored, "x")


def test_a_22k_head_without_its_bias_and_a_head_without_its_weight_are_named():
    weights = small(num_classes=21841).state_dict()
    del weights["head.bias"]
    with pytest.raises(WeightsError, match=r"1 missing: head\.bias"):
        load_contents(small(num_classes=1000), weights, "x")
    weights = small().state_dict()
    del weights["head.weight"]
    with pytest.raises(WeightsError, match=r"1 missing: head\.weight"):
        load_contents(small(), weights, "x")
    del weights["head.bias"]
    with pytest.raises(WeightsError, match="holds no head"):
        load_contents(small(), weights, "x")


@pytest.mark.parametrize("layout", ["original", "transformers", "mmdetection"])
@pytest.mark.parametrize("shape", [(), (48,), (48, 2), (3, 3, 3)])
def test_no_shape_ends_in_a_traceback(layout, shape):
    """Every tensor in turn in an odd shape: one line that says so."""
    stored = LAYOUTS[layout].from_original(small().state_dict())
    for name, value in stored.items():
        if value.shape != shape:
            with pytest.raises(WeightsError, match="shape|classes|holds no head"):
                load_contents(small(), {**stored, name: torch.zeros(shape)}, "x")


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
        unfolded, (24,), *(theirs[f"backbone.stages.0.downsample.norm.{leaf}"] for leaf in ("weight", "bias"))
    )
    expected = normed @ theirs["backbone.stages.0.downsample.reduction.weight"].T
    torch.testing.assert_close(merging(x).flatten(1, 2), expected)


def test_a_segmentation_checkpoint_gives_its_backbone():
    source, target = small(num_classes=5), small()
    stored = LAYOUTS["mmdetection"].from_original(source.state_dict())
    stored = {k: v for k, v in stored.items() if "head" not in k}
    stored |= {"backbone.norm0.weight": torch.ones(8), "decode_head.conv_seg.weight": torch.zeros(3, 3, 1, 1)}
    found = find_weights({"state_dict": stored}, "x")
    assert set(found.ignored) == {"norm0.weight", "decode_head.conv_seg.weight"}
    line = load_weights(target, found, head="renew")
    assert "2 ignored" in line and "a fresh head for 5 classes (the file has none)" in line
    assert found.classes == 0


def test_a_simmim_encoder_loads_with_its_old_names():
    source, target = small("swinv2"), small("swinv2")
    stored = {
        f"encoder.{k.replace('cpb_mlp', 'rpe_mlp')}": v for k, v in source.state_dict().items() if "head" not in k
    }
    stored |= {"encoder.mask_token": torch.zeros(1, 1, 8), "decoder.0.weight": torch.zeros(3)}
    found = find_weights({"model": stored}, "x")
    assert "decoder.0.weight" in found.ignored
    load_weights(target, found, head="renew")
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
    with pytest.raises(WeightsError, match=r"1 missing: norm.weight; 1 unexpected: layers.0.odd"):
        load_contents(model, weights, "x.pth")
    weights = {**model.state_dict(), "norm.bias": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"1 of another shape: norm.bias \(3,\) for \(16,\)"):
        load_contents(model, weights, "x.pth")
    last = LAYOUTS["mmdetection"].from_original(weights)
    with pytest.raises(WeightsError, match=r"1 of another shape: norm1.bias \(3,\) for \(16,\)"):
        load_contents(model, last, "x.pth")


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
    line = load_contents(model, contents, "x", head_for=list("fghij"))
    assert "a fresh head for 5 classes (the file has other classes)" in line
    assert torch.equal(model.head.weight, head)
    assert "a fresh head" not in load_contents(model, contents, "x", head_for=list("abcde"))
    assert torch.equal(model.head.weight, source.head.weight)


def timm_model(name, **more):
    return build_model("timm", model_name=name, **{"img_size": 32, "num_classes": 4, **more})


def test_models_of_timm_load_by_their_own_names():
    source, target = timm_model("resnet10t"), timm_model("resnet10t")
    assert "resnet" not in load_contents(target, {"model": source.state_dict()}, "x")
    assert torch.equal(target.fc.weight, source.fc.weight)
    other = timm_model("resnet10t", num_classes=7)
    with pytest.raises(WeightsError, match=r"fc.weight \(4, 512\) for \(7, 512\)"):
        load_contents(other, source.state_dict(), "x")
    assert "fresh fc.weight, fc.bias" in load_contents(other, source.state_dict(), "x", head_for=list("1234567"))
    with pytest.raises(WeightsError, match="not finite: fc.bias"):
        load_contents(target, {**source.state_dict(), "fc.bias": torch.full((4,), float("nan"))}, "x")


@pytest.mark.parametrize(("name", "head"), [("resnet10t", "fc."), ("convnext_atto", "head.fc.")])
def test_a_timm_head_of_other_classes_is_not_taken_for_the_datas(name, head):
    source, target = timm_model(name), timm_model(name)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    contents = {"model": source.state_dict(), "class_names": list("abcd")}
    load_contents(target, contents, "x", head_for=list("efgh"))
    for k, v in target.state_dict().items():
        assert torch.equal(v, (fresh if k.startswith(head) else source.state_dict())[k]), k


def test_a_timm_transformer_of_another_size_keeps_its_positions():
    source = timm_model("vit_tiny_patch16_224", img_size=64)
    torch.nn.init.normal_(source.pos_embed)
    target, before = timm_model("vit_tiny_patch16_224", img_size=96), source.pos_embed
    assert "resized by timm" in load_contents(target, source.state_dict(), "x")
    assert target.pos_embed.shape != before.shape
    torch.testing.assert_close(target.pos_embed[:, 0], before[:, 0])  # the class token's
    assert abs(target.pos_embed.mean().item() - before.mean().item()) < 0.02 and target.pos_embed.std().item() > 0.5


def test_an_empty_group_of_weights_hides_no_other():
    state = small().state_dict()
    assert "(original layout, model)" in load_contents(small(), {"model_ema": {}, "model": state}, "x")


def test_averaged_weights_go_before_raw_ones():
    one, two = small(), small()
    target = small()
    for contents in (
        {"model": one.state_dict(), "model_ema": two.state_dict()},
        {"state_dict": one.state_dict(), "state_dict_ema": two.state_dict()},
    ):
        load_contents(target, contents, "x")
        assert torch.equal(target.norm.weight, two.norm.weight)


@pytest.mark.parametrize(("kind", "message"), [(torch.complex64, "is complex"), (torch.int32, "of whole numbers")])
@pytest.mark.parametrize("family", ["swin", "timm"])
def test_weights_that_are_no_floating_point_numbers_are_refused(kind, message, family):
    model = small() if family == "swin" else timm_model("resnet10t")
    name = "norm.weight" if family == "swin" else "fc.weight"
    contents = {**model.state_dict(), name: model.state_dict()[name].to(kind)}
    with pytest.raises(WeightsError, match=f"{message}.*{name}"):
        load_contents(model, contents, "x")


def test_keys_that_are_no_names_are_left_out():
    contents = {"model": {**small().state_dict(), 1: torch.zeros(2), None: torch.zeros(1)}}
    assert class_names_of(contents) == {"class_names": None, "usual_names": None}
    load_contents(small(), contents, "x")


@pytest.mark.parametrize("windows", [[-5, -5], [8], [8, 8, 8], ["8", "8"], [10**30, 8], 8])
def test_impossible_windows_of_pre_training_are_refused(windows):
    with pytest.raises(WeightsError, match="windows"):
        load_contents(small("swinv2"), {"model": small("swinv2").state_dict(), "pretrained_windows": windows}, "x")


@pytest.mark.parametrize("value", [1000.0, 1e-30, float("nan"), float("inf"), 0.0])
def test_a_table_of_coordinates_with_nonsense_ends_in_no_traceback(value):
    state = small("swinv2").state_dict()
    state["layers.0.blocks.0.attn.relative_coords_table"] = torch.full((1, 7, 7, 2), value)
    with pytest.raises(WeightsError, match="windows of 1 stages for a model of 2"):
        load_contents(small("swinv2"), state, "x")


def test_a_file_without_weights_is_refused():
    with pytest.raises(WeightsError, match="no weights"):
        find_weights({"epoch": 1}, "x.pth")
