"""Weights are found, recognised, checked by name and shape, and loaded, or rejected in one line."""

import copy
import re

import pytest
import torch
from torch import nn

from models.registry import MODELS, build_model
from models.weights.checks import WrongModelError
from models.weights.layouts import LAYOUTS
from models.weights.load import find_weights, has_encoder, load_composite, load_contents, load_weights
from tests.models.weights.conftest import filled, same
from tests.tools.builders import randomize, small
from tests.tools.errors import raises
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
    place = {"model": "", None: " (top level)"}.get(wrapper, f" ({wrapper})")
    assert line.split(",")[0].endswith(f"tensors from x.pth{place}")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize(("family", "layout"), BOTH)
@pytest.mark.parametrize("part", ["norm", "attn|attention|w_msa"])
def test_a_renamed_and_a_missing_tensor_are_named_as_the_file_names_them(family, layout, part):
    target = small(family)
    stored = LAYOUTS[layout].from_original(filled(family).state_dict())
    last = next(name for name in stored if re.search(part, name) and name.endswith("weight"))
    short = last.removeprefix(LAYOUTS[layout].prefix).removeprefix(LAYOUTS[layout].prefix_v2)
    broken = {name + ("x" if name == last else ""): v for name, v in stored.items()}
    with raises(WrongModelError, "x.pth", f"1 missing: {short}; 1 unexpected: {short}x ("):
        load_contents(target, broken, "x.pth")
    del broken[last + "x"]
    with raises(WrongModelError, "x.pth", f"1 missing: {short} ("):
        load_contents(target, broken, "x.pth")


def test_extra_tensors_of_transformers_are_ignored(model, weights):
    stored = LAYOUTS["transformers"].from_original(weights)
    stored |= {"swin.embeddings.mask_token": torch.zeros(1, 1, 8), "hidden_states_norms.stage1.weight": torch.ones(8)}
    line = load_contents(model, stored, "x")
    assert "2 ignored (hidden_states_norms.stage1.weight, swin.embeddings.mask_token)" in line


def test_a_22k_head_without_its_bias_and_a_head_without_its_weight_are_named(model, weights):
    wide = filled(num_classes=21841).state_dict()
    del wide["head.bias"]
    with raises(WrongModelError, "x", "1 missing: head.bias"):
        load_contents(small(num_classes=1000), wide, "x")
    cut = dict(weights)
    del cut["head.weight"]
    with raises(WrongModelError, "x", "1 missing: head.weight"):
        load_contents(model, cut, "x")
    del cut["head.bias"]
    with raises(CheckpointError, "x", "no head"):
        load_contents(model, cut, "x")


@pytest.mark.parametrize("layout", ["original", "transformers", "mmdetection"])
@pytest.mark.parametrize("shape", [(), (48,), (48, 2), (3, 3, 3)])
def test_no_shape_ends_in_a_traceback(model, weights, layout, shape):
    """Every tensor in turn with an impossible shape: a one-line error and an unchanged model."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stored = LAYOUTS[layout].from_original(weights)
    for name, value in stored.items():
        if value.shape != shape:
            with pytest.raises(CheckpointError, match=r"^x: .*(shape|classes|has no head)"):
                load_contents(model, {**stored, name: torch.zeros(shape)}, "x")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_segmentation_checkpoint_gives_its_backbone(model, weights):
    stored = LAYOUTS["mmdetection"].from_original(weights)
    stored = {k: v for k, v in stored.items() if "head" not in k}
    stored |= {"backbone.norm0.weight": torch.ones(8), "decode_head.conv_seg.weight": torch.zeros(3, 3, 1, 1)}
    found = find_weights({"state_dict": stored}, "x")
    assert set(found.others) == {"backbone.norm0.weight", "decode_head.conv_seg.weight"} and found.classes == 0
    before = model.head.weight.clone()
    line = load_weights(model, found, head="renew")
    assert "2 ignored" in line and "head initialised at random for 5 classes (the file has none)" in line
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model.norm.weight, weights["norm.weight"])


def test_a_simmim_encoder_loads_with_its_old_names():
    source, target = filled("swinv2"), small("swinv2")
    stored = {
        f"encoder.{k.replace('cpb_mlp', 'rpe_mlp')}": v for k, v in source.state_dict().items() if "head" not in k
    }
    stored |= {"encoder.mask_token": torch.zeros(1, 1, 8), "decoder.0.weight": torch.zeros(3)}
    found = find_weights({"model": stored}, "x")
    assert "decoder.0.weight" in found.others
    load_weights(target, found, head="renew")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items() if "head" not in k)


@pytest.mark.parametrize(("family", "other"), [("swin", "swinv2"), ("swinv2", "swin_mlp"), ("swin_mlp", "swin")])
def test_a_file_of_another_family_is_rejected_with_its_type(family, other):
    titles = {"swin": "Swin V1", "swinv2": "Swin V2", "swin_mlp": "Swin-MLP"}
    names = f"contains a {titles[other]}", f"is a {titles[family]}", f"MODEL.TYPE {other})"
    with raises(CheckpointError, "x", *names):
        load_contents(small(family), small(other).state_dict(), "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fault_21_a_weight_that_is_not_finite_is_named(weights, bad):
    with raises(CheckpointError, "x", "norm.bias is not finite"):
        find_weights({**weights, "norm.bias": torch.full((16,), bad)}, "x")


def test_fault_10_missing_unexpected_and_other_shapes_are_named(model, weights):
    renamed = dict(weights)
    renamed["layers.0.odd"] = renamed.pop("norm.weight")
    with raises(WrongModelError, "x.pth", "1 missing: norm.weight; 1 unexpected: layers.0.odd"):
        load_contents(model, renamed, "x.pth")
    short = {**weights, "norm.bias": torch.zeros(3)}
    with raises(WrongModelError, "x.pth", "1 of a different shape: norm.bias (3,) for (16,)"):
        load_contents(model, short, "x.pth")
    with raises(WrongModelError, "x.pth", "1 of a different shape: norm1.bias (3,) for (16,)"):
        load_contents(model, LAYOUTS["mmdetection"].from_original(short), "x.pth")


def test_another_number_of_classes_re_initialises_the_head_only_when_asked(model):
    nine = filled(num_classes=9).state_dict()
    with raises(CheckpointError, "x.pth", "9 classes, the data 5"):
        load_contents(model, nine, "x.pth")
    line = load_contents(model, nine, "x.pth", head_for=[])
    assert "head re-initialised to zero for 5 classes (the file has 9 classes)" in line
    assert not model.head.weight.any() and not model.head.bias.any()
    assert torch.equal(model.norm.weight, nine["norm.weight"])


def test_a_head_of_as_many_but_other_classes_is_re_initialised(model, weights):
    """The file stores the classes it was trained on."""
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
    assert load_contents(model, {"model_ema": {}, "model": weights}, "x").endswith("tensors from x")


def test_ema_weights_take_precedence_over_raw_ones(model, weights):
    averaged = filled(seed=1).state_dict()
    for contents in (
        {"model": weights, "model_ema": averaged},
        {"state_dict": weights, "state_dict_ema": averaged},
    ):
        load_contents(model, weights, "x")
        load_contents(model, contents, "x")
        assert torch.equal(model.norm.weight, averaged["norm.weight"])


@pytest.mark.parametrize(("kind", "problem"), [(torch.complex64, "complex"), (torch.int32, "int32")])
@pytest.mark.parametrize("family", ["swin", "timm"])
def test_weights_that_are_not_floating_point_are_rejected(kind, problem, family):
    model = small() if family == "swin" else build_model("timm", name="resnet10t", num_classes=4)
    name = "norm.weight" if family == "swin" else "fc.weight"
    contents = {**model.state_dict(), name: model.state_dict()[name].to(kind)}
    with raises(CheckpointError, "x", f"{name} is ", problem):
        load_contents(model, contents, "x")


def test_keys_that_are_not_strings_are_ignored(model, weights):
    load_contents(model, {"model": {**weights, 1: torch.zeros(2), None: torch.zeros(1)}}, "x")
    assert torch.equal(model.norm.weight, weights["norm.weight"])


@pytest.mark.parametrize("windows", [[-5, -5], [8], [8, 8, 8], ["8", "8"], [10**30, 8], 8])
def test_impossible_windows_of_pre_training_are_rejected(windows):
    model = small("swinv2")
    with raises(CheckpointError, "x", "windows"):
        load_contents(model, {"model": model.state_dict(), "pretrained_windows": windows}, "x")


@pytest.mark.parametrize("value", [1000.0, 1e-30, float("nan"), float("inf"), 0.0])
def test_nonsense_in_a_table_of_coordinates_is_rejected(value):
    model = small("swinv2")
    table = torch.full((1, 7, 7, 2), value)
    state = {**model.state_dict(), "layers.0.blocks.0.attn.relative_coords_table": table}
    with raises(CheckpointError, "x", "windows of 1 stage", "2"):
        load_contents(model, state, "x")


def test_a_file_without_weights_is_rejected():
    with raises(CheckpointError, "x.pth", "no weights", "epoch"):
        find_weights({"epoch": 1}, "x.pth")


class Segmenter(nn.Module):
    """A Swin below `backbone`, and a head with weights, a bias and running statistics."""

    encoder_name = "backbone."

    def __init__(self, family="swin", classes=3, **more):
        super().__init__()
        self.backbone = small(family, num_classes=0, **more)
        self.decode_head = nn.Sequential(nn.Conv2d(16, classes, 1), nn.BatchNorm2d(classes))

    @property
    def encoder(self):
        return self.backbone


class Detector(nn.Module):
    """A Swin two levels down, and a part with the name of a classifier's head."""

    encoder_name = "backbone.body."

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"body": small(num_classes=0)})
        self.head = nn.Linear(16, 4)

    @property
    def encoder(self):
        return self.backbone["body"]


def filled_with(model, value=0.5):
    for tensor in model.state_dict().values():
        tensor.fill_(value) if tensor.is_floating_point() else tensor.fill_(7)
    return model


def test_a_model_has_an_encoder_under_any_name():
    assert has_encoder(Segmenter()) and has_encoder(Detector())
    assert not has_encoder(small()) and not has_encoder(build_model("timm", name="resnet10t", num_classes=4))


@pytest.mark.parametrize("encoder_only", [False, True])
@pytest.mark.parametrize("build", [Segmenter, Detector, lambda: Segmenter("swinv2")], ids=["v1", "nested", "v2"])
def test_a_model_with_an_encoder_loads_whole(build, encoder_only):
    source, target = filled_with(build()), build()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    line = load_composite(target, {"model": state}, "x.pth", encoder_only=encoder_only)
    assert same(source, target) and "ignored" not in line and "dropped" not in line
    assert line.endswith("with its decode head" if isinstance(target, Segmenter) else "with its head")


def test_the_encoder_of_a_whole_model_is_translated_and_fitted():
    """From mmsegmentation's layout, to a different window size; the window that V2's coordinates had is adopted."""
    source, target = filled_with(Segmenter()), Segmenter(window_size=8)
    encoder = LAYOUTS["mmdetection"].from_original(source.backbone.state_dict())
    head = {name: value for name, value in source.state_dict().items() if name.startswith("decode_head.")}
    line = load_contents(target, {"state_dict": encoder | head}, "x.pth")
    assert "4 position tables resized" in line and "mmdetection layout" in line
    assert same(source.decode_head, target.decode_head)
    assert torch.equal(source.backbone.norm.weight, target.backbone.norm.weight)
    source, target = Segmenter("swinv2"), Segmenter("swinv2", window_size=8)
    line = load_contents(target, {"model": source.state_dict(), "pretrained_windows": [4, 4]}, "x.pth")
    assert "position coordinates of window 4/4" in line and target.encoder.pretrained_windows() == [4, 4]


@pytest.mark.parametrize("kind", ["classifier", "other model", "detector of another library"])
def test_an_encoder_alone_loads_only_if_it_is_meant(kind):
    swin, model = filled(), Segmenter()
    state, head = swin.state_dict(), copy.deepcopy(model.decode_head)
    if kind != "classifier":
        prefix = "encoder." if kind == "other model" else "backbone."
        state = {f"{prefix}{name}": value for name, value in state.items() if "head" not in name}
        state["neck.0.weight"] = torch.zeros(3)
    with raises(WrongModelError, "x.pth", "no decode head", "--pretrained"):
        load_contents(model, state, "x.pth")
    line = load_contents(model, state, "x.pth", head_for=[])
    assert line.endswith("a new decode head") and ("1 ignored (neck.0.weight)" in line) == (kind != "classifier")
    assert torch.equal(model.backbone.patch_embed.proj.weight, swin.patch_embed.proj.weight)
    assert same(model.decode_head, head)


@pytest.mark.parametrize("head_for", [None, []])
@pytest.mark.parametrize(
    ("name", "value", "kind", "problem"),
    [
        ("decode_head.0.bias", None, WrongModelError, "1 missing: decode_head.0.bias"),
        ("decode_head.1.running_mean", None, WrongModelError, "1 missing: decode_head.1.running_mean"),
        ("auxiliary_head.weight", torch.zeros(2), WrongModelError, "1 unexpected: auxiliary_head.weight"),
        ("backbone.norm0.weight", torch.zeros(8), WrongModelError, "1 unexpected: backbone.norm0.weight"),
        ("decode_head.0.weight", torch.zeros(5, 16, 1, 1), WrongModelError, "head.0.weight (5, 16, 1, 1) for (3,"),
        ("decode_head.0.bias", torch.tensor([0, float("nan"), 0]), CheckpointError, "decode_head.0.bias is not finite"),
        ("decode_head.0.bias", torch.zeros(3, dtype=torch.int32), CheckpointError, "decode_head.0.bias is an integer"),
        ("backbone.norm.weight", None, WrongModelError, "1 missing: norm.weight"),
    ],
)
def test_the_other_parts_of_a_whole_model_must_match(name, value, kind, problem, head_for):
    """They are never lost silently, and the model stays unchanged."""
    model = Segmenter()
    before = copy.deepcopy(model)
    state = {**filled_with(Segmenter()).state_dict(), name: value}
    with raises(kind, "x.pth", problem):
        load_contents(model, {key: v for key, v in state.items() if v is not None}, "x.pth", head_for=head_for)
    assert same(model, before)


def test_a_file_of_another_family_is_rejected_for_an_encoder_too():
    with raises(CheckpointError, "x", "contains a Swin V2", "is a Swin V1", "MODEL.TYPE swinv2"):
        load_contents(Segmenter(), Segmenter("swinv2").state_dict(), "x")


def test_a_classifier_names_what_it_ignores_of_a_larger_model(model):
    line = load_contents(model, Segmenter().state_dict(), "x.pth", head_for=[])
    assert "7 ignored (decode_head.0.weight, decode_head.0.bias, decode_head.1.weight, ...)" in line


def test_the_state_of_a_swin_of_transformers_loads():
    """transformers 5 renames V1 in memory, but not in its files."""
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    peer = randomize(transformers.SwinForImageClassification(transformers.SwinConfig(**sizes, num_labels=5)))
    model = small().eval()
    load_contents(model, peer.state_dict(), "peer")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), peer(images).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_ema": {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in state.items()}}},
        lambda state: {"model_state_dict": state, "loss": torch.tensor(0.3)},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": state},
        lambda state: {"net": state, "loss": torch.tensor(0.3), "optimizer": {"lr": torch.tensor(0.1)}},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {**state, "history": {"loss": torch.tensor(0.3)}},
    ],
    ids=["AveragedModel", "model_state_dict", "no loss", "one other name", "another name", "Lightning", "top level"],
)
def test_weights_are_found_under_the_names_that_training_programs_use(wrap):
    source, target = randomize(small()), small()
    load_contents(target, wrap(source.state_dict()), "file")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
