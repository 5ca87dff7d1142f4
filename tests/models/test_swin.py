"""Swin V1 against timm and torchvision with the same weights, and against the released models' exact figures."""

import pytest
import timm
import torch
import torchvision

from models.registry import build_model
from models.weights.layouts import DERIVED, LAYOUTS
from models.weights.load import find_weights, load_weights

SIZES = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


def take(model, peer):
    """The peer's weights, through the layouts; and back they are the peer's again, to the bit."""
    found = find_weights(peer.state_dict(), "peer")
    load_weights(model, found)
    back = found.layout.from_original(model.state_dict())
    theirs = {name: value for name, value in peer.state_dict().items() if name.rsplit(".", 1)[-1] not in DERIVED}
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], value) for name, value in theirs.items())
    return model


def randomise(model):
    """Weights large enough that every part of the model shows in its output."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "bias_table" in name:
            torch.nn.init.normal_(p, std=0.5)
        elif p.ndim == 1:
            torch.nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.1)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "pixels", "window"),
    [
        ("tiny", 224, 7),
        ("small", 224, 7),
        ("tiny", 384, 12),
        ("small", 384, 12),
        ("base", 224, 7),
        ("large", 224, 7),
        ("base", 384, 12),
        ("large", 384, 12),
    ],
)
def test_logits_equal_timm(size, pixels, window):
    name = (
        f"swin_{size}_patch4_window{window}_{pixels}"
        if size in ("base", "large")
        else f"swin_{size}_patch4_window7_224"
    )
    peer = randomise(timm.create_model(name, img_size=pixels, window_size=window))
    ours = build_model("swin", img_size=pixels, window_size=window, **SIZES[size]).eval()
    take(ours, peer)
    images = torch.randn(1, 3, pixels, pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), atol=1e-5, rtol=1e-5)


def test_pyramid_equals_timm():
    peer = randomise(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0))
    ours = build_model("swin", num_classes=0).eval()
    take(ours, peer)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for mine, theirs in zip(
            ours.forward_intermediates(images)[1],
            peer.forward_intermediates(images, intermediates_only=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pixels", [(224, 224), (200, 312), (333, 257)])
def test_logits_equal_torchvision_at_sizes_that_need_padding(pixels):
    peer = randomise(torchvision.models.swin_t())
    ours = build_model("swin").eval()
    take(ours, peer)
    images = torch.randn(2, 3, *pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), atol=1e-5, rtol=1e-5)


def test_gradients_equal_timm():
    peer = randomise(timm.create_model("swin_tiny_patch4_window7_224", drop_path_rate=0.0)).train()
    ours = build_model("swin", drop_path_rate=0.0).train()
    take(ours, peer)
    images, targets = torch.randn(2, 3, 224, 224), torch.tensor([3, 700])
    for model in (peer, ours):
        torch.nn.functional.cross_entropy(model(images), targets).backward()
    theirs = LAYOUTS["timm"].to_original({name: p.grad for name, p in peer.named_parameters()})
    for name, p in ours.named_parameters():
        error = (p.grad - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-12)
        assert error < 1e-4, name


def test_stochastic_depth_rises_linearly():
    model = build_model("swin", drop_path_rate=0.2)
    rates = [block.drop_path for stage in model.stages() for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])


def test_scale_and_bias_of_the_queries_are_options():
    model = build_model("swin", qkv_bias=False, qk_scale=0.5)
    attention = model.stages()[0].blocks[0].attn
    assert attention.qkv.bias is None and attention.scale == 0.5


def test_a_small_map_takes_a_smaller_window():
    model = build_model("swin", img_size=192, window_size=12)  # the last stage sees 6 x 6 tokens
    assert model.stages()[3].blocks[0].attn.relative_position_bias_table.shape == (11 * 11, 24)
    assert [b.shift for b in model.stages()[0].blocks] == [0, 6]
