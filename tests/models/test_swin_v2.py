"""Swin V2 against timm and torchvision with the same weights, and its additions."""

import math
from functools import cache

import pytest
import timm
import torch
from torchvision.models import swin_transformer as torchvision_swin

from configs.loading import load_config
from models.attention import log_coordinates
from models.registry import build, model_options
from models.swin_v2 import MAX_SCALE, CosineWindowAttention, SwinTransformerV2, SwinV2Options
from models.weights.load import find_weights, load_weights
from tests.conftest import RELEASED, ROOT
from tests.models.conftest import fill, uninitialized
from tests.tools.builders import SIZES, configured, randomize, small, take, train_state


def fill_v2(model):
    """Like `fill`, with score scales below and above the clamp at log 100, and position biases that differ."""
    fill(model)
    for name, p in model.named_parameters():
        if name.endswith("logit_scale"):
            torch.nn.init.uniform_(p, 1.0, 5.0)
        elif "cpb_mlp" in name and p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("size", "name", "pixels", "window", "pretrained"),
    [
        ("tiny", "window8_256", 256, 8, 0),
        ("small", "window16_256", 256, 16, 0),
        ("base", "window12to16_192to256", 256, 16, 12),
        ("base", "window12to24_192to384", 384, 24, 12),
        ("large", "window12_192", 192, 12, 0),
    ],
)
def test_logits_equal_timm(size, name, pixels, window, pretrained):
    """Every published size and window once; other peers are compared in tests/scripts/test_other_libraries.py."""
    peer = fill_v2(uninitialized(lambda: timm.create_model(f"swinv2_{size}_{name}", num_classes=100)))
    windows = (pretrained, pretrained, pretrained, pretrained // 2)
    options = SwinV2Options(
        img_size=pixels, window_size=window, pretrained_window_sizes=windows, num_classes=100, **SIZES[size]
    )
    ours = take(uninitialized(lambda: SwinTransformerV2(options)), peer)
    images = torch.randn(1, 3, pixels, pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def padding():
    """torchvision's model and ours with the same weights; both pad maps to whole windows."""
    narrow = {"embed_dim": 12, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8)}
    parts = {
        "block": torchvision_swin.SwinTransformerBlockV2,
        "downsample_layer": torchvision_swin.PatchMergingV2,
    }
    peer = fill_v2(torchvision_swin.SwinTransformer([4, 4], window_size=[8, 8], **narrow, **parts))
    for name, p in peer.named_parameters():
        if name.endswith("qkv.bias"):
            p.data[len(p) // 3 : 2 * len(p) // 3] = 0  # torchvision zeroes the keys' bias in its forward pass
    return peer, take(SwinTransformerV2(SwinV2Options(img_size=256, window_size=8, **narrow)).eval(), peer)


@pytest.mark.parametrize("pixels", [(256, 256), (200, 312), (333, 257)])
def test_logits_equal_torchvision_at_sizes_that_need_padding(padding, pixels):
    peer, ours = padding
    images = torch.randn(1, 3, *pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_finite_for_every_window(window):
    model = fill_v2(small("swinv2", window_size=window)).train()
    logits = model(torch.randn(2, 3, 32, 32))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_bias_lies_between_0_and_16_and_branches_start_at_zero():
    model = small("swinv2", depths=(2,), num_heads=(2,))
    bias = model.stages()[0].blocks[0].attn.position_bias()
    assert bias.shape == (2, 16, 16) and (bias > 0).all() and (bias < 16).all()
    images = torch.randn(1, 3, 32, 32)
    stem = model.patch_embed(images)
    assert torch.equal(model.forward_intermediates(images)[1][0], stem.permute(0, 3, 1, 2))


V2_RECIPES = sorted(row["config"] for row in RELEASED if row["type"] == "swinv2")


@cache
def autocast_error(dim, heads, window, pretrained_window):
    """Returns the relative error of an attention's output under bfloat16 autocast, from its scores onwards.

    The projections are permutations and the input is representable in bfloat16, so query, key and value are exact.
    """
    torch.manual_seed(0)
    attention = CosineWindowAttention(dim, heads, window)
    attention.set_pretrained_window(pretrained_window)
    torch.nn.init.constant_(attention.logit_scale, math.log(MAX_SCALE))
    attention.qkv.weight.data = torch.cat([torch.eye(dim)[torch.randperm(dim)] for _ in range(3)])
    x = torch.randn(1, window, 2 * window, dim).bfloat16().float()
    with torch.no_grad():
        exact = attention(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = attention(x)
    assert mixed.dtype == torch.bfloat16
    return ((mixed.float() - exact).norm() / exact.norm()).item()


@pytest.mark.seconds
@pytest.mark.parametrize("recipe", V2_RECIPES)
def test_scores_keep_their_precision_under_autocast(recipe):
    """At the largest score scale, for every stage: 0.3 %; with cosines rounded to bfloat16 it would be 1.2 to 2.4 %."""
    o = model_options(load_config(ROOT / f"configs/swinv2/{recipe}.yaml"))
    for i, heads in enumerate(o.num_heads):
        window = min(o.window_size, o.img_size[0] // (o.patch_size * 2**i))
        assert autocast_error(o.embed_dim * 2**i, heads, window, o.pretrained_window_sizes[i]) < 0.01


WINDOW_8 = {"img_size": 64, "depths": (1, 1), "window_size": 8}
WINDOW_16 = {**WINDOW_8, "window_size": 16}


def test_windows_of_pre_training_come_from_the_file_unless_configured():
    source = randomize(small("swinv2", **WINDOW_8))
    state = dict(source.state_dict())
    for i in (0, 1):  # as the released files store it
        table = log_coordinates(8, 0).view(1, 15, 15, 2)
        state[f"layers.{i}.blocks.0.attn.relative_coords_table"] = table
    model = small("swinv2", **WINDOW_16)
    assert "position coordinates of window 8/8" in load_weights(model, find_weights(state, "x"))
    assert model.pretrained_windows() == [8, 8] and model.windows() == [16, 16] and not model.is_configured()
    configured = small("swinv2", **WINDOW_16, pretrained_window_sizes=(4, 0))
    line = load_weights(configured, find_weights(state, "x"))
    assert "window 4/8 as configured, although the file has 8/8" in line
    assert configured.pretrained_windows() == [4, 8] and not configured.is_configured()
    assert small("swinv2", **WINDOW_16, pretrained_window_sizes=(4, 4)).is_configured()
    state["layers.0.blocks.0.attn.relative_coords_table"] = log_coordinates(8, 6).view(1, 15, 15, 2)
    assert find_weights(state, "x").windows == (6, 8)  # normalised to yet a different window size
    again = small("swinv2", **WINDOW_16)
    load_weights(again, find_weights({"model": model.state_dict(), "pretrained_windows": [8, 8]}, "x"))
    assert again.pretrained_windows() == [8, 8]
    unknown = small("swinv2", **WINDOW_16)
    line = load_weights(unknown, find_weights(source.state_dict(), "x"))
    assert "window 16/16: the file does not store its pre-training window" in line and "PRETRAINED_WINDOW_SIZES" in line


def test_the_ema_of_fine_tuning_has_the_windows_of_the_model():
    """The EMA model is a copy made after the weights, and their window, were loaded."""
    source, model = randomize(small("swinv2", **WINDOW_8)), small("swinv2", **WINDOW_16)
    load_weights(model, find_weights({"model": source.state_dict(), "pretrained_windows": [8, 8]}, "x"))
    state = train_state(model, ema_decay=0.9)
    images = torch.randn(1, 3, 64, 64)
    assert state.evaluated is not model and state.evaluated.pretrained_windows() == [8, 8]
    assert torch.equal(state.evaluated.eval()(images), model.eval()(images))


@pytest.mark.parametrize(("size", "millions", "norms"), [("huge", 658, 3), ("giant", 3002, 7)])
def test_the_largest_models_have_the_published_number_of_parameters(size, millions, norms):
    """Table 1 of arXiv 2111.09883: 658 M and 3.0 B, with a norm of the main branch after every sixth block."""
    options = model_options(configured(f"swinv2/swinv2_{size}_patch4_window12_192_22k.yaml"))
    with torch.device("meta"):
        model = build(options, 1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    named = [name for name, module in model.named_modules() if name.endswith("norm3") and list(module.parameters())]
    assert named == [f"layers.2.blocks.{6 * i + 5}.norm3" for i in range(norms)]


def test_a_further_norm_acts_on_the_main_branch():
    model = randomize(small("swinv2", extra_norm_every=2))
    plain = small("swinv2").eval()
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if "norm3" not in name})
    x = torch.randn(2, 16, 16, 8)
    block, same = model.layers[0].blocks[1], plain.layers[0].blocks[1]
    wanted = torch.nn.functional.layer_norm(same(x), (8,), block.norm3.weight, block.norm3.bias)
    assert torch.allclose(block(x), wanted, atol=1e-6)
    assert torch.equal(model.layers[0].blocks[0](x), plain.layers[0].blocks[0](x))
