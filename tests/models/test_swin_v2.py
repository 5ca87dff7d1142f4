"""Swin V2 against timm and torchvision with the same weights, and its own promises."""

import math

import pytest
import timm
import torch
import torchvision
from timm.utils import ModelEmaV3

from models.registry import build_model
from models.swin_v2 import CosineWindowAttention, log_coordinates
from models.weights.load import find_weights, load_weights
from tests.models.test_swin import SIZES, take
from utils.distributed import World
from utils.precision import Precision
from utils.training.state import TrainState

FP32 = Precision("cpu", torch.float32)


def randomise(model):
    """Branches start at zero; weights of another size make every part show in the output."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "logit_scale" in name:
            torch.nn.init.uniform_(p, 1.0, 5.0)  # below and above the clamp at log 100
        elif p.ndim == 1:
            torch.nn.init.normal_(p, mean=0.5 * ("norm" in name and "weight" in name), std=0.1)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "name", "pixels", "window", "pretrained"),
    [
        ("tiny", "window8_256", 256, 8, 0),
        ("tiny", "window16_256", 256, 16, 0),
        ("small", "window8_256", 256, 8, 0),
        ("small", "window16_256", 256, 16, 0),
        ("base", "window8_256", 256, 8, 0),
        ("base", "window16_256", 256, 16, 0),
        ("base", "window12_192", 192, 12, 0),
        ("base", "window12to16_192to256", 256, 16, 12),
        ("base", "window12to24_192to384", 384, 24, 12),
        ("large", "window12_192", 192, 12, 0),
        ("large", "window12to16_192to256", 256, 16, 12),
        ("large", "window12to24_192to384", 384, 24, 12),
    ],
)
def test_logits_equal_timm(size, name, pixels, window, pretrained):
    peer = randomise(timm.create_model(f"swinv2_{size}_{name}", num_classes=100))
    windows = [pretrained] * 3 + [pretrained // 2]
    ours = build_model(
        "swinv2", img_size=pixels, window_size=window, pretrained_window_sizes=windows, num_classes=100, **SIZES[size]
    ).eval()
    take(ours, peer)
    images = torch.randn(1, 3, pixels, pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pixels", [(256, 256), (200, 312), (333, 257)])
def test_logits_equal_torchvision_at_sizes_that_need_padding(pixels):
    peer = randomise(torchvision.models.swin_v2_t())
    for name, p in peer.named_parameters():
        if name.endswith("qkv.bias"):
            p.data[len(p) // 3 : 2 * len(p) // 3] = 0  # torchvision zeroes the keys' bias as it runs
    ours = build_model("swinv2", img_size=256, window_size=8).eval()
    take(ours, peer)
    images = torch.randn(1, 3, *pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_finite_for_every_window(window):
    model = build_model(
        "swinv2", img_size=32, patch_size=2, embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=window
    )
    randomise(model).train()
    logits = model(torch.randn(2, 3, 32, 32))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_coordinates_by_hand():
    table = log_coordinates(3, 0)  # offsets -2..2 over 2, times 8: -8, -4, 0, 4, 8
    assert table.shape == (25, 2)
    scaled = [-math.log2(9) / 3, -math.log2(5) / 3, 0, math.log2(5) / 3, math.log2(9) / 3]
    assert table[10:15, 1].tolist() == pytest.approx(scaled) and table[::5, 0].tolist() == pytest.approx(scaled)
    wider = log_coordinates(5, 3)  # offsets up to 4, twice as far as those of pre-training
    assert wider[-1].tolist() == pytest.approx([math.log2(17) / 3] * 2)


def test_bias_lies_between_0_and_16_and_branches_start_at_zero():
    model = build_model("swinv2", img_size=32, patch_size=2, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4)
    attention = next(m for m in model.modules() if isinstance(m, CosineWindowAttention))
    bias = attention.position_bias()
    assert bias.shape == (2, 16, 16) and (bias > 0).all() and (bias < 16).all()
    images = torch.randn(1, 3, 32, 32)
    stem = model.patch_embed(images)
    assert torch.equal(model.forward_intermediates(images)[1][0], stem.permute(0, 3, 1, 2))


def test_windows_of_pre_training_come_from_the_file_unless_configured():
    small = {"img_size": 64, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 4)}
    source = randomise(build_model("swinv2", window_size=8, **small))
    state = dict(source.state_dict())
    for i in (0, 1):  # as the released files hold it
        table = log_coordinates(8, 0).view(1, 15, 15, 2)
        state[f"layers.{i}.blocks.0.attn.relative_coords_table"] = table
    model = build_model("swinv2", window_size=16, **small)
    assert "position coordinates of window 8/8" in load_weights(model, find_weights(state, "x"))
    assert model.pretrained_windows() == [8, 8]
    configured = build_model("swinv2", window_size=16, pretrained_window_sizes=(4, 0), **small)
    line = load_weights(configured, find_weights(state, "x"))
    assert "window 4/8 as configured, though the file's are of 8/8" in line
    assert configured.pretrained_windows() == [4, 8]
    state["layers.0.blocks.0.attn.relative_coords_table"] = log_coordinates(8, 6).view(1, 15, 15, 2)
    assert find_weights(state, "x").windows == (6, 8)  # normalised to yet another window
    again = build_model("swinv2", window_size=16, **small)
    load_weights(again, find_weights({"model": model.state_dict(), "pretrained_windows": [8, 8]}, "x"))
    assert again.pretrained_windows() == [8, 8]
    unknown = build_model("swinv2", window_size=16, **small)
    line = load_weights(unknown, find_weights(source.state_dict(), "x"))
    assert "window 16/16: the file does not tell" in line and "PRETRAINED_WINDOW_SIZES" in line


def test_averaged_weights_of_fine_tuning_have_the_windows_of_the_model():
    small = {"img_size": 64, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 4), "num_classes": 3}
    source, model = (randomise(build_model("swinv2", window_size=window, **small)) for window in (8, 16))
    state = TrainState(model, torch.optim.SGD(model.parameters()), world=World(), precision=FP32, ema=ModelEmaV3(model))
    load_weights(model, find_weights({"model": source.state_dict(), "pretrained_windows": [8, 8]}, "x"))
    state.average_from_here()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(state.evaluated.eval()(images), model.eval()(images))
