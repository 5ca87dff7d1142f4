"""UPerNet on a dense Swin against transformers' UPerNet, with the same random weights."""

import pytest
import torch
from torch import nn

from models.heads.upernet import ConvNorm, FCNHead, UPerHead
from models.registry import build_model
from models.weights.layouts import LAYOUTS
from models.weights.load import find_weights, load_composite
from models.weights.parts import whole_from_original
from scripts.other_libraries import build_upernet
from tasks.registry import new_task
from tasks.segmentation.model import Segmenter
from tests.models.conftest import fill
from tests.tools.builders import configured, randomize
from utils.distributed.world import World

SIZES = [(64, 64), (97, 64), (33, 65), (28, 43)]
OPTIONS = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 7, "drop_path_rate": 0.0}


def segmenter(family="swin", classes=5, **more):
    backbone = build_model(family, num_classes=0, dense=True, **{**OPTIONS, **more})
    return randomize(Segmenter(backbone, classes, channels=12, auxiliary_channels=6, dropout=0.0))


def peer(classes=5):
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        embed_dim=8, depths=[2] * 4, num_heads=[1, 2, 4, 8], window_size=7, drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    whole = transformers.UperNetConfig(
        backbone_config=config, hidden_size=12, auxiliary_channels=6, auxiliary_in_channels=32, num_labels=classes
    )
    return with_statistics(randomize(transformers.UperNetForSemanticSegmentation(whole)))


def with_statistics(model):
    """Gives batch norms weights and running statistics as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.fixture(scope="module")
def pair():
    theirs = peer()
    ours = segmenter()
    load_composite(ours, theirs.state_dict(), "theirs")
    return ours, theirs


@pytest.mark.parametrize("size", SIZES)
def test_logits_equal_those_of_transformers(pair, size):
    ours, theirs = pair
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(images).logits
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)


def test_both_heads_and_all_gradients_equal_those_of_transformers(pair):
    ours, theirs = pair
    images, labels = torch.randn(2, 3, 50, 77), torch.randint(0, 5, (2, 50, 77))
    ours.train(), theirs.train()
    losses = []
    for logits in (ours(images), None):
        if logits is None:
            losses.append(theirs(images, labels=labels).loss)
        else:
            full = [nn.functional.interpolate(each, (50, 77), mode="bilinear") for each in logits]
            losses.append(sum(w * nn.functional.cross_entropy(x, labels) for w, x in zip((1, 0.4), full, strict=True)))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for model, loss in zip((ours, theirs), losses, strict=True):
        model.zero_grad(), loss.backward()
    check_gradients(ours, theirs)
    ours.eval(), theirs.eval()


def check_gradients(ours, theirs):
    """Compares the gradients by loading them like weights."""
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in theirs.named_parameters()}
    expected = segmenter()
    load_composite(expected, theirs.state_dict() | gradients, "gradients")
    count = 0
    for (name, p), (_, wanted) in zip(ours.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, wanted.data, rtol=1e-4, atol=1e-5, msg=name)
        count += int(bool(p.grad.abs().sum()))
    assert count > 100


@pytest.mark.parametrize("family", ["swin", "swinv2"])
@pytest.mark.parametrize("size", [(64, 64), (33, 65)])
def test_every_parameter_gets_a_gradient(family, size):
    model = segmenter(family).train()
    decoded, auxiliary = model(torch.randn(2, 3, *size))
    assert decoded.shape[2:] == tuple(-(-side // 4) for side in size)
    (decoded.square().sum() + auxiliary.square().sum()).backward()
    small = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not [name for name in small if "cpb_mlp" not in name or size == (64, 64)], small


def test_shapes_of_the_released_heads():
    head, auxiliary = UPerHead((96, 192, 384, 768), 150), FCNHead(384, 150)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes["psp_modules.3.1.conv.weight"] == (512, 768, 1, 1)
    assert shapes["bottleneck.conv.weight"] == (512, 2816, 3, 3)
    assert shapes["fpn_bottleneck.bn.running_var"] == (512,)
    assert shapes["conv_seg.weight"] == (150, 512, 1, 1)
    assert tuple(auxiliary.state_dict()["convs.0.conv.weight"].shape) == (256, 384, 3, 3)
    assert isinstance(head.bottleneck, ConvNorm) and "bottleneck.conv.bias" not in shapes


def test_checkpointed_activations_change_nothing():
    model, images = segmenter().train(), torch.randn(2, 3, 64, 64)
    sums = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(images)[0].square().sum().backward()
        sums.append(model.backbone.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(*sums)


def test_weights_of_the_backbone_are_found_in_a_segmenter():
    model = segmenter()
    found = find_weights(model.state_dict(), "x", "backbone.")
    assert found.layout.name == "original" and "decode_head.conv_seg.weight" in found.others


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tiny", "base"])
def test_published_sizes_equal_transformers(recipe):
    """Both heads, on images that fill patches and windows and on ones that do not."""
    task = new_task(configured(f"segmentation/upernet_swin_{recipe}_ade20k.yaml"), World())
    model = with_statistics(fill(task.new_model(None)))
    theirs = build_upernet(model, whole_from_original(model.state_dict(), LAYOUTS["transformers"], "backbone."))
    if theirs is None:
        pytest.skip("transformers is not installed")
    for size in ((225, 300), (33, 65), (256, 256)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            own, expected = model(images), theirs(images)
        assert expected.std((2, 3)).mean() > 0.05  # not the bias alone
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
