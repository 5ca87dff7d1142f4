"""The shared backbone, tested on every family of the registry."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters

from configs.loading import load_config
from models.backbone import init_weights, resize_position_embedding
from models.registry import MODELS, build_model, model_options
from models.swin import SwinOptions
from tests.conftest import ROOT
from tests.tools.builders import SMALL, randomize, small
from tests.tools.errors import raises
from utils.errors import ConfigError
from utils.training.optim import parameter_groups


@pytest.fixture(params=sorted(MODELS))
def family(request):
    return request.param


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (18, 30), (6, 6), (45, 33)])
def test_logits_are_finite_at_any_size(family, size):
    logits = small(family)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5) and logits.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_logits_do_not_depend_on_the_batch_an_image_is_in(family, dtype, tolerance):
    """Up to float rounding: a matrix product may be summed in a different order for a different number of rows."""
    model, images = randomize(small(family)), torch.randn(9, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        together = model(images).float()
        for size in (1, 4):
            apart = torch.cat([model(part) for part in images.split(size)]).float()
            torch.testing.assert_close(apart, together, atol=tolerance * together.abs().max().item(), rtol=0)


@pytest.mark.seconds
def test_compiled_logits_are_the_eager_ones(family):
    """With gradients and without; at two sizes, which are compiled apart, and for two batches, which are not."""
    model = randomize(small(family, drop_path_rate=0.2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for shape, gradients in (((2, 3, 32, 32), True), ((2, 3, 18, 30), False), ((3, 3, 18, 30), False)):
        images = torch.randn(shape)
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(compiled(images), model(images), atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize(
    "more", [{"drop_path_rate": 0.1}, {"ape": True, "drop_path_rate": 0.9}, {"patch_norm": False, "drop_rate": 0.1}]
)
def test_every_parameter_gets_a_gradient(family, more):
    model = small(family, **more)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_activation_checkpointing_changes_nothing(family):
    gradients = []
    for recompute in (False, True):
        model = small(family, drop_path_rate=0.3, drop_rate=0.1)
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(1)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_head_can_be_replaced(family):
    model = small(family)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == model.num_classes == 7
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 16)
    features = model.forward_features(torch.randn(1, 3, 32, 32))
    assert model.forward_head(features, pre_logits=True).shape == (1, 16)


def test_pyramid(family):
    model = small(family).eval()
    last, maps = model.forward_intermediates(torch.randn(1, 3, 32, 48), norm=True)
    assert [tuple(m.shape) for m in maps] == [(1, 8, 16, 24), (1, 16, 8, 12)]
    assert torch.equal(last.permute(0, 3, 1, 2), maps[-1])
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [(8, 2), (16, 4)]
    assert len(model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=[-1])[1]) == 1
    with pytest.raises(ValueError, match="stage indices"):
        model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=[2])


def test_derived_tensors_are_not_saved(family):
    model = small(family, ape=True)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_position_tables_are_named_for_no_weight_decay(family):
    names = small(family, ape=True).no_weight_decay()
    assert "absolute_pos_embed" in names
    if family == "swin":
        assert "layers.1.blocks.0.attn.relative_position_bias_table" in names and len(names) == 5


def test_layers_for_layer_decay(family):
    model = small(family, ape=True)
    layer = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layer) == {name for name, _ in model.named_parameters()}
    assert layer["patch_embed.proj.weight"] == layer["absolute_pos_embed"] == 0
    assert layer["layers.0.blocks.1.norm1.weight"] == 2
    assert layer["layers.1.blocks.0.norm1.weight"] == layer["layers.0.downsample.norm.weight"] == 3
    assert (layer["norm.weight"], layer["head.bias"]) == (4, 5)
    assert set(group_parameters(model, model.group_matcher(coarse=True), reverse=True).values()) == {0, 1, 2, 3}


def test_layers_for_layer_decay_in_simmim(family):
    model = small(family, ape=True)
    layer = group_parameters(model, model.simmim_group_matcher(), reverse=True)
    assert set(layer) == {name for name, _ in model.named_parameters()} and layer["patch_embed.proj.weight"] == 0
    assert layer["layers.0.blocks.1.norm1.weight"] == layer["layers.0.downsample.norm.weight"] == 2
    assert layer["layers.1.blocks.0.norm1.weight"] == 3
    assert layer["norm.weight"] == layer["head.bias"] == layer["absolute_pos_embed"] == 5


@pytest.mark.parametrize(
    ("ours", "theirs", "size", "window"),
    [("swin", "swin_tiny_patch4_window7_224", 224, 7), ("swinv2", "swinv2_tiny_window8_256", 256, 8)],
)
def test_layer_decay_equals_that_of_timm(ours, theirs, size, window):
    """For every parameter of timm's model, under the names of timm."""
    sizes = {"num_classes": 5, "embed_dim": 8, "depths": (2, 2, 3, 1), "num_heads": (1, 1, 2, 2)}
    peer = timm.create_model(theirs, **sizes)
    model = build_model(ours, img_size=size, window_size=window, patch_size=4, **sizes)

    def scales(model, names):
        numbers = {id(p): name for name, p in zip(names, model.parameters(), strict=True)}
        groups = parameter_groups(model, 0.05, 0.7)
        return {numbers[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}

    def of_timm(name):  # the merging is at the start of the next stage there
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)
        return name.replace("head.", "head.fc.")

    expected = scales(peer, [name for name, _ in peer.named_parameters()])
    found = scales(model, [of_timm(name) for name, _ in model.named_parameters()])
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["layers.2.downsample.norm.weight"] == pytest.approx(0.7**4)


@pytest.mark.parametrize(
    ("stages", "parts"), [(0, {"layers", "norm", "head"}), (1, {"layers", "norm", "head"}), (None, {"head"})]
)
def test_frozen_parts_get_no_gradient_and_run_as_in_evaluation(family, stages, parts):
    model = small(family, ape=True, drop_path_rate=0.5)
    model.freeze(stages)
    model.train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n.split(".")[0] for n in with_gradient} == parts
    assert any(n.startswith("layers.0") for n in with_gradient) == (stages == 0)
    assert model.stages()[0].training == (stages == 0) and model.head.training


def test_no_more_stages_can_be_frozen_than_there_are(family):
    with raises(ConfigError, "TRAIN.FREEZE", 2, 3):
        small(family).freeze(3)


def test_stochastic_depth_rises_linearly(family):
    model = small(family, depths=(2, 4), drop_path_rate=0.2)
    rates = [block.drop_path for stage in model.stages() for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 5 for i in range(6)])


def test_a_small_map_takes_a_smaller_window(family):
    model = small(family, img_size=24, window_size=8)  # 12 x 12 tokens, then 6 x 6
    assert [(b.window, b.shift) for b in model.stages()[0].blocks] == [(8, 0), (8, 4)]
    assert [(b.window, b.shift) for b in model.stages()[1].blocks] == [(6, 0), (6, 3)]
    if family == "swin":
        assert model.stages()[1].blocks[0].attn.relative_position_bias_table.shape == (11 * 11, 4)


@pytest.mark.parametrize("size", [40, (32, 48)])
def test_the_position_embedding_has_the_grid_of_the_image_and_fits_others(family, size):
    model = small(family, img_size=size, ape=True).eval()
    height, width = size if isinstance(size, tuple) else (size, size)
    assert model.grid == (height // 2, width // 2)
    assert model.absolute_pos_embed.shape == (1, height * width // 4, 8)
    assert model(torch.randn(1, 3, 36, 52)).isfinite().all()


def test_position_embeddings_are_resized_bicubically_and_only_for_another_grid():
    table = torch.randn(1, 6, 4)
    assert torch.equal(resize_position_embedding(table, (2, 3), (2, 3)), table.view(1, 2, 3, 4))
    resized = resize_position_embedding(table, (2, 3), (5, 4))
    expected = F.interpolate(table.view(1, 2, 3, 4).permute(0, 3, 1, 2), (5, 4), mode="bicubic")
    assert torch.equal(resized, expected.permute(0, 2, 3, 1))


def test_linear_layers_start_from_a_truncated_normal_and_zero_biases(family):
    model = small(family, embed_dim=48)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.in_features > 2]
    assert len(linear) > 8
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.2) and layer.weight.abs().max() <= 2
        assert layer.bias is None or not layer.bias.any()
    layer = torch.nn.Conv2d(1, 1, 1)
    before = layer.weight.clone()
    init_weights(layer)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("change", "key", "names"),
    [
        ({"num_heads": (3, 4)}, "MODEL.SWIN.NUM_HEADS", ["3 heads", "8 channels", "stage 0"]),
        ({"num_heads": (2, 4, 8)}, "MODEL.SWIN.NUM_HEADS", ["[2, 4, 8]", "DEPTHS [2, 2]"]),
        ({"img_size": (32, 1)}, "DATA.IMG_SIZE", ["MODEL.SWIN.PATCH_SIZE 2"]),
    ],
)
def test_sizes_that_do_not_fit_together_are_rejected(change, key, names):
    with raises(ConfigError, key, *names):
        SwinOptions(**{**SMALL, **change})


@pytest.mark.parametrize(
    ("key", "size", "subject", "names"),
    [
        ("TEST.IMG_SIZE", [224, 3], "TEST.IMG_SIZE", ["MODEL.SWIN.PATCH_SIZE 4"]),
        ("DATA.IMG_SIZE", [16, 224], "MODEL.SWIN.WINDOW_SIZE", ["a window of 7", "4x56", "at most 4"]),
    ],
)
def test_sizes_of_a_configuration_that_do_not_fit_together_are_rejected(key, size, subject, names):
    with raises(ConfigError, subject, *names):
        model_options(load_config(ROOT / "configs/swin_tiny.yaml", [(key, size, "test")]))


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_a_dense_backbone_has_a_norm_for_each_map_and_rounds_sizes_up(family):
    model = small(family, dense=True, num_classes=0)
    names = {name.split(".")[0] for name in model.state_dict()}
    assert {"norm0", "norm1"} <= names and not {"norm", "head"} & names
    _, maps = model.forward_intermediates(torch.randn(1, 3, 17, 33))
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 9, 17), (16, 5, 9)]
    for each in maps:  # new norms: mean 0 and variance 1 over the channels
        torch.testing.assert_close(each.mean(1), torch.zeros_like(each[:, 0]), rtol=0, atol=1e-5)
    model.freeze(None)
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
