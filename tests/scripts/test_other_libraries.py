"""Peers built from our options answer like our model, and take exactly the weights of their layout."""

import importlib.util

import pytest
import torch

from configs.loading import load_config
from models.registry import MODELS, build, model_options
from models.weights.layouts import LAYOUTS
from models.weights.load import find_weights, load_weights
from scripts.other_libraries import build_peer
from tests.conftest import ROOT
from tests.tools.builders import SMALL

PEERS = ("timm", "torchvision", "transformers")


def options(family, **more):
    windows = {"pretrained_window_sizes": (3, 2)} if family == "swinv2" else {}
    return MODELS[family].Options(**{**SMALL, "num_classes": 7, **windows, **more})


def stored(model, layout):
    return {name: value.clone() for name, value in LAYOUTS[layout].from_original(model.state_dict()).items()}


def equal(model, peer, images, tolerance=1e-5):
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), peer(images), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("layout", PEERS)
@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_every_option_reaches_the_peer(family, layout):
    """All that the layout can represent: a peer with other options rejects the weights or computes something else."""
    more = {"mlp_ratio": 2.0, "img_size": (64, 32)}
    if layout != "torchvision":  # it has none of these
        more |= {"in_chans": 4, "qkv_bias": False}
    elif family == "swinv2":
        more["pretrained_window_sizes"] = (0, 0)
    if layout == "transformers":
        more["ape"] = family == "swin"
    o = options(family, **more)
    model = build(o)
    torch.manual_seed(0)
    for p in model.parameters():  # large enough that every option affects the output
        torch.nn.init.normal_(p, std=0.3)
    equal(model, build_peer(layout, o, stored(model, layout)), torch.randn(2, o.in_chans, 64, 32))


def test_peers_exist_for_three_layouts_if_their_library_is_installed(monkeypatch):
    o = options("swin")
    weights = build(o).state_dict()
    assert build_peer("original", o, weights) is None and build_peer("mmdetection", o, weights) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert build_peer("timm", o, weights) is None


@pytest.mark.parametrize("layout", PEERS)
def test_missing_and_unexpected_weights_are_rejected(layout):
    o = options("swin")
    weights = stored(build(o), layout)
    head = next(name for name in weights if name.endswith(("head.weight", "head.fc.weight", "classifier.weight")))
    with pytest.raises(RuntimeError, match=rf"{layout} misses \['{head}'\] and does not expect \[\]"):
        build_peer(layout, o, {name: value for name, value in weights.items() if name != head})
    with pytest.raises(RuntimeError, match=rf"{layout} misses \[\] and does not expect \['odd'\]"):
        build_peer(layout, o, {**weights, "odd": torch.zeros(1)})


REAL = {
    "torchvision": ["swin_tiny", "swin_base", "swinv2_tiny", "swinv2_base"],
    "transformers": ["swin_tiny", "swinv2_tiny", "swin/swin_base_patch4_window12_384_22kto1k_finetune"],
}


@pytest.mark.seconds
@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout, names in REAL.items() for name in names])
def test_published_sizes_give_the_peers_outputs(layout, name):
    """float32 logits equal to 1e-5 (V2: 1e-4), with weights that went through the layout; timm's: tests/models."""
    o = model_options(load_config(ROOT / "configs" / f"{name}.yaml"))
    torch.manual_seed(0)
    model = build(o, num_classes=100).eval()
    o = model.options
    for p in model.parameters():
        if p.ndim == 1:
            torch.nn.init.normal_(p, mean=0.5, std=0.1)
    weights = stored(model, layout)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tolerance = 1e-4 if model.family == "swinv2" else 1e-5
    equal(model, build_peer(layout, o, weights), torch.randn(1, 3, *o.img_size), tolerance)
    for p in model.parameters():
        p.data.zero_()
    load_weights(model, find_weights(weights, "x"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
