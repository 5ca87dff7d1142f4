"""Weights of one size in a model of another, against timm's and hand-made results."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resize_rel_pos_bias_table_simple

from models.registry import build_model
from models.weights.class_maps import map_head, rows_of_1k
from models.weights.fitting import adapt_input_channels, resize_bias_table
from models.weights.load import load_contents


@pytest.mark.parametrize(("old", "new"), [(7, 12), (8, 16), (12, 24), (12, 7)])
def test_position_tables_are_resized_by_the_bicubic_of_the_released_recipes(old, new):
    """Equal to timm's simple bicubic, which is the same interpolation; timm's default one spaces geometrically."""
    table = torch.randn((2 * old - 1) ** 2, 3)
    resized = resize_bias_table(table, (2 * new - 1) ** 2)
    grid = table.view(1, 2 * old - 1, 2 * old - 1, 3).permute(0, 3, 1, 2)
    side = 2 * new - 1
    expected = F.interpolate(grid, (side, side), mode="bicubic").permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(resized, expected, atol=1e-6, rtol=0)
    peer = resize_rel_pos_bias_table_simple(table, (new, new), (side * side, 3))
    torch.testing.assert_close(resized, peer, atol=1e-6, rtol=0)


SMALL = {"patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 3}


def test_another_window_and_image_size_load():
    source = build_model("swin", img_size=32, window_size=4, ape=True, **SMALL)
    model = build_model("swin", img_size=64, window_size=8, ape=True, **SMALL)
    line = load_contents(model, source.state_dict(), "x")
    assert "position tables resized" in line and "absolute position embedding resized" in line
    old = source.absolute_pos_embed.view(1, 16, 16, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(old, (32, 32), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 1024, 8)
    torch.testing.assert_close(model.absolute_pos_embed, expected)
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8])
def test_other_input_channels(channels):
    filters = torch.randn(8, 3, 4, 4)
    fitted = adapt_input_channels(filters, channels)
    assert fitted.shape == (8, channels, 4, 4)
    grey = torch.rand(2, 1, 4, 4)
    response = F.conv2d(grey.expand(-1, 3, -1, -1), filters)
    if channels in (1, 3, 6):  # whole repeats of the colours answer a grey image alike
        torch.testing.assert_close(F.conv2d(grey.expand(-1, channels, -1, -1), fitted), response)
    source = build_model("swin", img_size=32, window_size=4, **SMALL)
    model = build_model("swin", img_size=32, window_size=4, in_chans=channels, **SMALL)
    line = load_contents(model, source.state_dict(), "x")
    assert ("filters of 3 input channels made" in line) == (channels != 3)


def test_the_rows_of_the_1k_classes():
    rows = rows_of_1k()
    assert len(set(rows)) == 1000 and rows[:3] == (359, 368, 460) and rows[850] == 5564
    text = "".join(f"{row}\n" for row in rows)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "844b5d131d31b69f63786a69144e749bfe08eaa52e8de8057831c7edb4402e04"
    )


def test_a_22k_head_becomes_a_1k_head():
    small = {**SMALL, "img_size": 32, "window_size": 4}
    source, model = (build_model("swin", **{**small, "num_classes": n}) for n in (21841, 1000))
    assert "head mapped from 22K to 1K classes" in load_contents(model, source.state_dict(), "x")
    assert torch.equal(model.head.weight[850], source.head.weight[5564])
    assert torch.equal(map_head(source.head.bias), model.head.bias)
    other = build_model("swin", **{**small, "num_classes": 7})
    assert "fresh head for 7" in load_contents(other, source.state_dict(), "x", head_for=[])
