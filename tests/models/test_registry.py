"""Every family of the registry keeps the common promises."""

import pytest
import torch
from timm.models import group_parameters

from models.errors import ModelError
from models.registry import MODELS, build_model, prepare
from utils.errors import PlanError
from utils.profiling import describe_model

SMALL = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


@pytest.fixture(params=sorted(MODELS))
def family(request):
    return request.param


def small(family, **more):
    torch.manual_seed(0)
    return build_model(family, **{**SMALL, "num_classes": 5, **more})


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (18, 30), (6, 6), (45, 33)])
def test_logits_are_finite_at_any_size(family, size):
    logits = small(family)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5) and logits.isfinite().all()


@pytest.mark.parametrize("more", [{}, {"ape": True, "drop_path_rate": 0.9}, {"patch_norm": False, "drop_rate": 0.1}])
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
    assert layer["layers.0.blocks.1.norm1.weight"] == layer["layers.0.downsample.norm.weight"] == 2
    assert layer["layers.1.blocks.0.norm1.weight"] == 3
    assert layer["norm.weight"] == layer["head.bias"] == 5
    assert set(group_parameters(model, model.group_matcher(coarse=True), reverse=True).values()) == {0, 1, 2, 3}


def test_frozen_parts_get_no_gradient_and_run_as_in_evaluation(family):
    for stages, trained in ((0, {"layers", "norm", "head"}), (1, {"layers", "norm", "head"}), (None, {"head"})):
        model = small(family, ape=True, drop_path_rate=0.5)
        model.freeze(stages)
        model.train()
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        moved = {n for n, p in model.named_parameters() if p.grad is not None}
        assert {n.split(".")[0] for n in moved} == trained
        assert any(n.startswith("layers.0") for n in moved) == (stages == 0)
        assert model.stages()[0].training == (stages == 0) and model.head.training
    with pytest.raises(ModelError, match="has 2 stages, not 3"):
        small(family).freeze(3)


def test_models_of_timm_are_built_by_name():
    model = build_model("timm", model_name="vit_tiny_patch16_224", img_size=64, num_classes=3, drop_path_rate=0.1)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ModelError, match="did you mean resnet50"):
        build_model("timm", model_name="resnet500", img_size=224)
    with pytest.raises(ModelError, match="only Swin models can be frozen"):
        prepare(model, checkpointing=True, freeze="all")


def test_unknown_family_names_the_nearest():
    with pytest.raises(ModelError, match="did you mean swin"):
        build_model("swinn")


def test_heads_must_divide_the_channels():
    with pytest.raises(ModelError, match="3 heads do not divide"):
        build_model("swin", **{**SMALL, "num_heads": (3, 4)})
    with pytest.raises(ModelError, match="differ in length"):
        build_model("swin", **{**SMALL, "num_heads": (2, 4, 8)})


def test_a_timm_model_without_stochastic_depth_says_so():
    arguments = {"model_name": "vgg11", "img_size": 32, "num_classes": 2}
    with pytest.raises(ModelError, match=r"no stochastic depth: MODEL\.DROP_PATH_RATE"):
        build_model("timm", **arguments, drop_path_rate=0.1)
    assert build_model("timm", **arguments, drop_path_rate=0.0).num_classes == 2


def test_images_that_a_model_of_timm_cannot_take_are_said():
    model = build_model("timm", model_name="convnext_atto", img_size=32, num_classes=2)
    with pytest.raises(PlanError, match=r"takes no images of 1x1 .*TEST\.IMG_SIZE"):
        describe_model(model, 1)
