"""Swin V1 against timm and torchvision with the same weights."""

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from models.swin import SwinOptions, SwinTransformer
from models.weights.layouts import LAYOUTS
from tests.models.conftest import fill, uninitialized
from tests.tools.builders import SIZES, small, take

# four stages of the published depth, an eighth of the width
NARROW = {"embed_dim": 12, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8)}


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("size", "pixels", "window"), [("tiny", 224, 7), ("small", 224, 7), ("base", 384, 12), ("large", 224, 7)]
)
def test_logits_equal_timm(size, pixels, window):
    """Every published size and window once; other peers are compared in tests/scripts/test_other_libraries.py."""
    name = f"swin_{size}_patch4_window7_224"
    peer = fill(uninitialized(lambda: timm.create_model(name, img_size=pixels, window_size=window, num_classes=100)))
    options = SwinOptions(img_size=pixels, window_size=window, num_classes=100, **SIZES[size])
    ours = take(uninitialized(lambda: SwinTransformer(options)), peer)
    images = torch.randn(1, 3, pixels, pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def narrow():
    """timm's model and ours with the same weights, at 224 pixels."""
    peer = fill(TimmSwin(img_size=224, window_size=7, drop_path_rate=0.0, **NARROW))
    return peer, take(SwinTransformer(SwinOptions(drop_path_rate=0.0, **NARROW)), peer)


def test_pyramid_equals_timm(narrow):
    peer, ours = (model.eval() for model in narrow)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for mine, theirs in zip(
            ours.forward_intermediates(images)[1],
            peer.forward_intermediates(images, intermediates_only=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_equal_timm(narrow):
    peer, ours = (model.train() for model in narrow)
    images, targets = torch.randn(2, 3, 224, 224), torch.tensor([3, 700])
    for model in (peer, ours):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(images), targets).backward()
    theirs = LAYOUTS["timm"].to_original({name: p.grad for name, p in peer.named_parameters()})
    for name, p in ours.named_parameters():
        error = (p.grad - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-12)
        assert error < 1e-4, name


@pytest.fixture(scope="module")
def padding():
    """torchvision's model and ours with the same weights; both pad maps to whole windows."""
    peer = fill(TorchvisionSwin([4, 4], window_size=[7, 7], **NARROW))
    return peer, take(SwinTransformer(SwinOptions(**NARROW)).eval(), peer)


@pytest.mark.parametrize("pixels", [(224, 224), (200, 312), (333, 257)])
def test_logits_equal_torchvision_at_sizes_that_need_padding(padding, pixels):
    peer, ours = padding
    images = torch.randn(2, 3, *pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), atol=1e-5, rtol=1e-5)


def test_scale_and_bias_of_the_queries_are_options():
    attention = small(qkv_bias=False, qk_scale=0.5).stages()[0].blocks[0].attn
    assert attention.qkv.bias is None and attention.scale == 0.5
    attention = small().stages()[1].blocks[0].attn  # 16 channels, 4 heads
    assert attention.qkv.bias is not None and attention.scale == 4**-0.5


def test_the_default_options_are_those_of_swin_t():
    with torch.device("meta"):
        model = SwinTransformer()
    assert {key: getattr(model.options, key) for key in SIZES["tiny"]} == SIZES["tiny"]
    assert sum(p.numel() for p in model.parameters()) == 28_288_354  # the released Swin-T
