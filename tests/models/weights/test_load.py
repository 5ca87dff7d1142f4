"""Weights are found, recognised, checked by name and shape, and loaded; or refused in one line."""

import re

import pytest
import torch

from models.registry import MODELS, build_model
from models.weights.layouts import LAYOUTS
from models.weights.load import find_weights, load_contents, load_weights
from tests.models.weights.conftest import filled
from tests.tools.builders import small
from utils.errors import CheckpointError

# mmpretrain stores V1 like mmdetection, mmdetection has no V2
MM_CANNOT = [("swin", "mmpretrain"), ("swinv2", "mmdetection")]
BOTH = [(f, layout) for f in ("swin", "swinv2") for layout in sorted(LAYOUTS) if (f, layout) not in MM_CANNOT]


@pytest.fixture
def model():
    return small()


@pytest.fixture(scope="module")
def weights():
    """A state dict of `small()` full of random values; copy before changing it."""
    return filled().state_dict()


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_wrapped_prefixed_weights_with_derived_tensors_load(family, wrapper, prefix):
    source, target = filled(family), small(family)
    state = {f"{prefix}{k}": v for k, v in source.state_dict().items()}
    state[f"{prefix}layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    state[f"{prefix}layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    line = load_contents(target, {wrapper: state, "epoch": 3} if wrapper else state, "x.pth")
    assert f"{wrapper or 'top level'}" in line and "original layout" in line
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize(("family", "layout"), BOTH)
@pytest.mark.parametrize("part", ["norm", "attn|attention|w_msa"])
def test_a_renamed_and_a_missing_tensor_are_named_as_the_file_names_them(family, layout, part):
    target = small(family)
    stored = LAYOUTS[layout].from_original(filled(family).state_dict())
    last = next(name for name in stored if re.search(part, name) and name.endswith("weight"))
    short = re.escape(last.removeprefix(LAYOUTS[layout].prefix).removeprefix(LAYOUTS[layout].prefix_v2))
    broken = {name + ("x" if name == last else ""): v for name, v in stored.items()}
    with pytest.raises(CheckpointError, match=rf"1 missing: {short}; 1 unexpected: {short}x:"):
        load_contents(target, broken, "x.pth")
    del broken[last + "x"]
    with pytest.raises(CheckpointError, match=rf"1 missing: {short}:"):
        load_contents(target, broken, "x.pth")


def test_what_transformers_stores_beside_a_classifier_is_ignored(model, weights):
    stored = LAYOUTS["transformers"].from_original(weights)
    stored |= {"swin.embeddings.mask_token": torch.zeros(1, 1, 8), "hidden_states_norms.stage1.weight": torch.ones(8)}
    line = load_contents(model, stored, "x")
    assert "2 ignored (hidden_states_norms.stage1.weight, embeddings.mask_token)" in line


def test_a_22k_head_without_its_bias_and_a_head_without_its_weight_are_named(model, weights):
    wide = filled(num_classes=21841).state_dict()
    del wide["head.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: head\.bias"):
        load_contents(small(num_classes=1000), wide, "x")
    cut = dict(weights)
    del cut["head.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: head\.weight"):
        load_contents(model, cut, "x")
    del cut["head.bias"]
    with pytest.raises(CheckpointError, match="the file has no head"):
        load_contents(model, cut, "x")


@pytest.mark.parametrize("layout", ["original", "transformers", "mmdetection"])
@pytest.mark.parametrize("shape", [(), (48,), (48, 2), (3, 3, 3)])
def test_no_shape_ends_in_a_traceback(model, weights, layout, shape):
    """Every tensor in turn in an impossible shape: one line that says so, and a model as before."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stored = LAYOUTS[layout].from_original(weights)
    for name, value in stored.items():
        if value.shape != shape:
            with pytest.raises(CheckpointError, match="shape|classes|has no head"):
                load_contents(model, {**stored, name: torch.zeros(shape)}, "x")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_segmentation_checkpoint_gives_its_backbone(model, weights):
    stored = LAYOUTS["mmdetection"].from_original(weights)
    stored = {k: v for k, v in stored.items() if "head" not in k}
    stored |= {"backbone.norm0.weight": torch.ones(8), "decode_head.conv_seg.weight": torch.zeros(3, 3, 1, 1)}
    found = find_weights({"state_dict": stored}, "x")
    assert set(found.ignored) == {"norm0.weight", "decode_head.conv_seg.weight"} and found.classes == 0
    line = load_weights(model, found, head="renew")
    assert "2 ignored" in line and "head re-initialised to zero for 5 classes (the file has no classes)" in line
    assert not model.head.weight.any() and not model.head.bias.any()
    assert torch.equal(model.norm.weight, weights["norm.weight"])


def test_a_simmim_encoder_loads_with_its_old_names():
    source, target = filled("swinv2"), small("swinv2")
    stored = {
        f"encoder.{k.replace('cpb_mlp', 'rpe_mlp')}": v for k, v in source.state_dict().items() if "head" not in k
    }
    stored |= {"encoder.mask_token": torch.zeros(1, 1, 8), "decoder.0.weight": torch.zeros(3)}
    found = find_weights({"model": stored}, "x")
    assert "decoder.0.weight" in found.ignored
    load_weights(target, found, head="renew")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items() if "head" not in k)


@pytest.mark.parametrize(("family", "other"), [("swin", "swinv2"), ("swinv2", "swin_mlp"), ("swin_mlp", "swin")])
def test_a_file_of_another_family_is_refused_with_its_type(family, other):
    titles = {"swin": "Swin V1", "swinv2": "Swin V2", "swin_mlp": "Swin-MLP"}
    message = f"contains a {titles[other]}, the model is a {titles[family]}: x: .*MODEL.TYPE {other}$"
    with pytest.raises(CheckpointError, match=message):
        load_contents(small(family), small(other).state_dict(), "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fault_21_a_weight_that_is_not_finite_is_named(weights, bad):
    with pytest.raises(CheckpointError, match="not finite: norm.bias"):
        find_weights({**weights, "norm.bias": torch.full((16,), bad)}, "x")


def test_fault_10_missing_unexpected_and_other_shapes_are_named(model, weights):
    renamed = dict(weights)
    renamed["layers.0.odd"] = renamed.pop("norm.weight")
    with pytest.raises(CheckpointError, match=r"1 missing: norm.weight; 1 unexpected: layers.0.odd"):
        load_contents(model, renamed, "x.pth")
    short = {**weights, "norm.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"1 of another shape: norm.bias \(3,\) for \(16,\)"):
        load_contents(model, short, "x.pth")
    with pytest.raises(CheckpointError, match=r"1 of another shape: norm1.bias \(3,\) for \(16,\)"):
        load_contents(model, LAYOUTS["mmdetection"].from_original(short), "x.pth")


def test_another_number_of_classes_re_initialises_the_head_only_when_asked(model):
    nine = filled(num_classes=9).state_dict()
    with pytest.raises(CheckpointError, match="the head has 9 classes, the data 5"):
        load_contents(model, nine, "x.pth")
    line = load_contents(model, nine, "x.pth", head_for=[])
    assert "head re-initialised to zero for 5 classes (the file has 9 classes)" in line
    assert not model.head.weight.any() and not model.head.bias.any()
    assert torch.equal(model.norm.weight, nine["norm.weight"])


def test_a_head_of_as_many_but_other_classes_is_re_initialised(model, weights):
    """The file says which classes it was trained on."""
    contents = {"model": weights, "class_names": list("abcde")}
    line = load_contents(model, contents, "x", head_for=list("fghij"))
    assert "head re-initialised to zero for 5 classes (the file has other classes)" in line
    assert not model.head.weight.any() and not model.head.bias.any()
    assert "re-initialised" not in load_contents(model, contents, "x", head_for=list("abcde"))
    assert torch.equal(model.head.weight, weights["head.weight"])


def test_a_1000_class_head_evaluates_fewer_classes_with_its_first_rows(model):
    weights = filled(num_classes=1000).state_dict()
    assert "the first 5 of 1000 outputs" in load_contents(model, weights, "x")
    assert torch.equal(model.head.weight, weights["head.weight"][:5])
    line = load_contents(model, weights, "x", head_for=list("abcde"))
    assert "head re-initialised to zero for 5 classes (the file has 1000 classes)" in line


def test_an_empty_group_of_weights_hides_no_other(model, weights):
    assert "(original layout, model)" in load_contents(model, {"model_ema": {}, "model": weights}, "x")


def test_ema_weights_take_precedence_over_raw_ones(model, weights):
    averaged = filled(seed=1).state_dict()
    for contents in (
        {"model": weights, "model_ema": averaged},
        {"state_dict": weights, "state_dict_ema": averaged},
    ):
        load_contents(model, weights, "x")
        load_contents(model, contents, "x")
        assert torch.equal(model.norm.weight, averaged["norm.weight"])


@pytest.mark.parametrize(("kind", "message"), [(torch.complex64, "is complex"), (torch.int32, "an integer weight")])
@pytest.mark.parametrize("family", ["swin", "timm"])
def test_weights_that_are_no_floating_point_numbers_are_refused(kind, message, family):
    model = small() if family == "swin" else build_model("timm", name="resnet10t", num_classes=4)
    name = "norm.weight" if family == "swin" else "fc.weight"
    contents = {**model.state_dict(), name: model.state_dict()[name].to(kind)}
    with pytest.raises(CheckpointError, match=f"{message}.*{name}"):
        load_contents(model, contents, "x")


def test_keys_that_are_no_names_are_ignored(model, weights):
    load_contents(model, {"model": {**weights, 1: torch.zeros(2), None: torch.zeros(1)}}, "x")
    assert torch.equal(model.norm.weight, weights["norm.weight"])


@pytest.mark.parametrize("windows", [[-5, -5], [8], [8, 8, 8], ["8", "8"], [10**30, 8], 8])
def test_impossible_windows_of_pre_training_are_refused(windows):
    model = small("swinv2")
    with pytest.raises(CheckpointError, match="windows"):
        load_contents(model, {"model": model.state_dict(), "pretrained_windows": windows}, "x")


@pytest.mark.parametrize("value", [1000.0, 1e-30, float("nan"), float("inf"), 0.0])
def test_nonsense_in_a_table_of_coordinates_ends_in_no_traceback(value):
    model = small("swinv2")
    table = torch.full((1, 7, 7, 2), value)
    state = {**model.state_dict(), "layers.0.blocks.0.attn.relative_coords_table": table}
    with pytest.raises(CheckpointError, match="windows of 1 stages for a model of 2"):
        load_contents(model, state, "x")


def test_a_file_without_weights_is_refused():
    with pytest.raises(CheckpointError, match="no weights: x.pth: it contains epoch, but no named tensors"):
        find_weights({"epoch": 1}, "x.pth")
