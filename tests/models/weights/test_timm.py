"""Weights for timm models: by name, by timm's translation, and the classifier."""

import pytest
import torch

from models.registry import build_model
from models.weights.checks import WrongModelError
from models.weights.load import load_contents
from models.weights.timm import load_timm
from tests.tools.errors import raises
from utils.errors import CheckpointError


def timm_model(name, seed=0, **more):
    torch.manual_seed(seed)
    return build_model("timm", name=name, **{"img_size": (32, 32), "num_classes": 4, **more})


@pytest.fixture(scope="module")
def resnet():
    """The weights of a small ResNet of four classes; copy before changing them."""
    return timm_model("resnet10t").state_dict()


def test_models_load_by_their_own_names(resnet):
    target = timm_model("resnet10t", seed=1)
    line = load_contents(target, {"model": resnet}, "x.pth")
    assert line == f"{len(resnet)} tensors from x.pth (model)"
    assert all(torch.equal(value, resnet[name]) for name, value in target.state_dict().items())


def test_a_classifier_of_other_classes_is_re_initialised_only_when_asked(resnet):
    other = timm_model("resnet10t", num_classes=7)
    with raises(WrongModelError, "x", "2 of a different shape: fc.weight (4, 512) for (7, 512)"):
        load_contents(other, resnet, "x")
    line = load_contents(other, resnet, "x", head_for=list("1234567"))
    assert "fc.weight, fc.bias re-initialised to zero" in line
    assert not other.fc.weight.any() and not other.fc.bias.any()
    assert torch.equal(other.conv1[0].weight, resnet["conv1.0.weight"])


@pytest.mark.parametrize(("name", "head"), [("resnet10t", "fc."), ("convnext_atto", "head.fc.")])
def test_a_head_of_as_many_but_other_classes_is_re_initialised(name, head):
    source, target = timm_model(name), timm_model(name, seed=1)
    contents = {"model": source.state_dict(), "class_names": list("abcd")}
    load_contents(target, contents, "x", head_for=list("efgh"))
    for k, v in target.state_dict().items():
        assert torch.equal(v, torch.zeros_like(v) if k.startswith(head) else source.state_dict()[k]), k
    load_contents(target, contents, "x", head_for=list("abcd"))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_only_the_classifier_may_be_missing(resnet):
    headless = {k: v for k, v in resnet.items() if not k.startswith("fc.")}
    target = timm_model("resnet10t", seed=1)
    with raises(WrongModelError, "x.pth", "2 missing: fc.weight, fc.bias"):
        load_timm(target, "model", headless, "x.pth", "fit")
    assert "re-initialised to zero" in load_timm(target, "model", headless, "x.pth", "renew")
    del headless["bn1.weight"]
    with raises(WrongModelError, "x.pth", "1 missing: bn1.weight"):
        load_timm(target, "model", headless, "x.pth", "renew")


def test_weights_that_are_not_finite_are_named(resnet):
    with raises(CheckpointError, "x", "fc.bias is not finite"):
        load_contents(timm_model("resnet10t"), {**resnet, "fc.bias": torch.full((4,), float("nan"))}, "x")


def test_a_transformer_of_another_image_size_keeps_its_position_embedding():
    source = timm_model("vit_tiny_patch16_224", img_size=(64, 64))
    torch.nn.init.normal_(source.pos_embed)
    target, before = timm_model("vit_tiny_patch16_224", img_size=(96, 96)), source.pos_embed
    assert "translated and resized by timm" in load_contents(target, source.state_dict(), "x")
    assert target.pos_embed.shape != before.shape
    torch.testing.assert_close(target.pos_embed[:, 0], before[:, 0])  # the class token's
    assert abs(target.pos_embed.mean().item() - before.mean().item()) < 0.02 and target.pos_embed.std().item() > 0.5


def test_the_published_names_of_an_architecture_are_translated_by_timm():
    """ConvNeXt's published files: other names of the blocks and the norm before the head."""
    source, target = timm_model("convnext_atto"), timm_model("convnext_atto", seed=1)
    published = {}
    for name, value in source.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        name = name.replace("conv_dw", "dwconv").replace("head.norm.", "norm.").replace("head.fc.", "head.")
        if name.startswith("stages."):
            _, stage, rest = name.split(".", 2)
            downsample = rest.startswith("downsample.")
            name = f"downsample_layers.{stage}.{rest.removeprefix('downsample.')}" if downsample else name
            name = name.replace(".blocks.", ".")
        published[name] = value
    assert "translated and resized by timm" in load_contents(target, {"model": published}, "x")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_weights_that_timm_cannot_convert_are_rejected_with_its_reason():
    source = timm_model("vit_tiny_patch16_224").state_dict()
    with raises(WrongModelError, "x.pth", "timm", "Error: "):
        load_contents(timm_model("vit_tiny_patch16_224"), {**source, "pos_embed": torch.zeros(3)}, "x.pth")


def test_the_window_of_pre_training_of_a_swin_v2_is_reported_as_unknown(resnet):
    model = timm_model("swinv2_tiny_window8_256", img_size=(64, 64))
    note = "position coordinates of the timm model: the file does not store its pre-training window size"
    assert note in load_contents(model, model.state_dict(), "x")
    assert note not in load_contents(timm_model("resnet10t"), resnet, "x")
