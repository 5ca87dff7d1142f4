"""Weights of one size in a model of another, compared with timm's results and with those computed by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RectBivariateSpline
from timm.layers import resize_rel_pos_bias_table_simple

from models.weights.fitting import adapt_input_channels, fit_head, fit_weights, resize_bias_table, resize_geometrically
from models.weights.load import load_contents
from tests.models.weights.conftest import filled
from tests.tools.builders import small
from tests.tools.errors import raises
from utils.errors import CheckpointError


@pytest.mark.parametrize(("old", "new"), [(7, 12), (8, 16), (12, 24), (12, 7)])
def test_position_tables_are_resized_by_the_bicubic_of_the_released_recipes(old, new):
    """Equals timm's simple resizing, which is the same interpolation; timm's default spaces it geometrically."""
    table = torch.randn((2 * old - 1) ** 2, 3)
    resized = resize_bias_table(table, (2 * new - 1) ** 2)
    grid = table.view(1, 2 * old - 1, 2 * old - 1, 3).permute(0, 3, 1, 2)
    side = 2 * new - 1
    expected = F.interpolate(grid, (side, side), mode="bicubic").permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(resized, expected, atol=1e-6, rtol=0)
    peer = resize_rel_pos_bias_table_simple(table, (new, new), (side * side, 3))
    torch.testing.assert_close(resized, peer, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "grid"), [(64, (32, 32)), ((64, 48), (32, 24))])
def test_another_window_and_image_size_load(size, grid):
    source = filled(ape=True)
    model = small(img_size=size, window_size=8, ape=True)
    line = load_contents(model, source.state_dict(), "x")
    assert " position tables resized" in line and "absolute position embedding resized" in line
    old = source.absolute_pos_embed.view(1, 16, 16, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(old, grid, mode="bicubic").permute(0, 2, 3, 1).reshape(1, -1, 8)
    torch.testing.assert_close(model.absolute_pos_embed, expected)
    table = model.layers[0].blocks[0].attn.relative_position_bias_table
    assert torch.equal(table, resize_bias_table(source.layers[0].blocks[0].attn.relative_position_bias_table, 15 * 15))
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8])
def test_other_input_channels(channels):
    filters = torch.randn(8, 3, 4, 4)
    fitted = adapt_input_channels(filters, channels)
    assert fitted.shape == (8, channels, 4, 4)
    grey = torch.rand(2, 1, 4, 4)
    response = F.conv2d(grey.expand(-1, 3, -1, -1), filters)
    if channels in (1, 3, 6):  # whole repeats of the colours respond alike to a grey image
        torch.testing.assert_close(F.conv2d(grey.expand(-1, channels, -1, -1), fitted), response)
    source, model = filled(), small(in_chans=channels)
    line = load_contents(model, source.state_dict(), "x")
    assert (f"filters for 3 input channels adapted to {channels}" in line) == (channels != 3)
    assert torch.equal(model.patch_embed.proj.weight, adapt_input_channels(source.patch_embed.proj.weight, channels))


def test_what_cannot_be_fitted_is_left_for_the_checks():
    """Other heads, no square, another patch size, a different number of dimensions."""
    own = small(ape=True).state_dict()
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    for name, shape in (
        (table, (81, 3)),
        (table, (80, 2)),
        (table, (81,)),
        ("absolute_pos_embed", (1, 60, 8)),
        ("absolute_pos_embed", (1, 64, 16)),
        ("patch_embed.proj.weight", (8, 4, 4, 4)),
        ("norm.weight", (8,)),
    ):
        weights = {name: torch.ones(shape)}
        assert fit_weights(weights, own, (16, 16)) == [] and weights[name].shape == shape


def head(rows):
    return {"head.weight": torch.randn(rows, 4), "head.bias": torch.randn(rows)}


def test_a_22k_head_becomes_a_1k_head():
    source, model = (filled(num_classes=n) for n in (21841, 1000))
    assert "head mapped from 22K to 1K classes" in load_contents(model, source.state_dict(), "x")
    assert torch.equal(model.head.weight[850], source.head.weight[5564])
    assert torch.equal(model.head.bias[0], source.head.bias[359])
    weights = source.state_dict()
    assert "re-initialised to zero for 7 classes (the file has 21841 classes)" in load_contents(
        small(num_classes=7), weights, "x", head_for=[]
    )


@pytest.mark.parametrize(
    ("policy", "rows", "note"),
    [
        ("renew", 9, "head re-initialised to zero for 5 classes (the file has 9 classes)"),
        ("renew", 1000, "head re-initialised to zero for 5 classes (the file has 1000 classes)"),
        ("replace", 5, "head re-initialised to zero for 5 classes (the file has other classes)"),
        ("renew", 5, ""),
        ("fit", 5, ""),
    ],
)
def test_a_head_that_does_not_fit_is_zero_only_if_it_may_be(policy, rows, note):
    weights = head(rows) if rows else {}
    before = dict(weights)
    assert fit_head(weights, head(5), policy, "x.pth") == note
    if note:
        assert weights["head.weight"].shape == (5, 4) and not any(value.any() for value in weights.values())
    else:
        assert weights == before


@pytest.mark.parametrize("policy", ["renew", "replace"])
def test_a_head_that_the_file_lacks_stays_as_it_was_initialised(policy):
    """As in the original's fine-tuning after SimMIM."""
    weights, own = {}, head(5)
    assert fit_head(weights, own, policy, "x.pth") == "head initialised at random for 5 classes (the file has none)"
    assert weights.keys() == own.keys() and all(torch.equal(weights[name], own[name]) for name in own)


@pytest.mark.parametrize("classes", [7, 999])
def test_the_first_rows_of_a_1000_class_head_evaluate_fewer_classes(classes):
    """The original always builds 1000 outputs, and trains custom data on the first of them."""
    given = head(1000)
    weights = dict(given)
    note = fit_head(weights, head(classes), "fit", "x.pth")
    assert note.startswith(f"the first {classes} of 1000 outputs, in the label order of the folders")
    assert all(torch.equal(weights[name], given[name][:classes]) for name in given)


@pytest.mark.parametrize(("rows", "classes"), [(9, 5), (5, 9), (1000, 1001), (21841, 7), (999, 7)])
def test_any_other_head_must_fit(rows, classes):
    with raises(CheckpointError, "x.pth", f"has {rows} classes", f"data {classes}", "--pretrained") as caught:
        fit_head(head(rows), head(classes), "fit", "x.pth")
    assert (f"MODEL.NUM_CLASSES {rows}" in caught.value.remedy) == (rows > classes)


def test_a_missing_head_and_a_head_that_is_not_a_matrix_are_rejected():
    with raises(CheckpointError, "x.pth", "head", "--pretrained"):
        fit_head({}, head(5), "fit", "x.pth")
    with raises(CheckpointError, "x.pth", "head.weight", "(20,)"):
        fit_head({"head.weight": torch.ones(20), "head.bias": torch.ones(5)}, head(5), "renew", "x.pth")


def test_a_model_without_a_head_drops_that_of_the_file():
    weights = {**head(5), "norm.weight": torch.ones(1)}
    assert fit_head(weights, {"norm.weight": torch.ones(1)}, "fit", "x") == "head dropped"
    assert list(weights) == ["norm.weight"]
    assert fit_head(weights, {"norm.weight": torch.ones(1)}, "fit", "x") == ""


@pytest.mark.parametrize(("old", "new"), [(6, 7), (12, 14), (7, 12)])
def test_geometric_tables_equal_the_formula(old, new):
    """Offsets at 1, 1 + q, 1 + q + q^2, ...: q by bisection, then a bicubic spline read at whole offsets."""
    side, target = 2 * old - 1, 2 * new - 1
    table = torch.randn(side * side, 3, generator=torch.Generator().manual_seed(0))
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if sum(q**i for i in range(side // 2)) > target // 2:
            high = q
        else:
            low = q
    offsets = [sum(q**i for i in range(n)) for n in range(1, side // 2 + 1)]
    knots = [-offset for offset in reversed(offsets)] + [0.0, *offsets]
    assert offsets[-1] == pytest.approx(target // 2, abs=1e-3)
    wanted = np.arange(-(target // 2), target // 2 + 1)
    resized = resize_geometrically(table, target * target)
    for head in range(3):
        spline = RectBivariateSpline(knots, knots, table[:, head].double().view(side, side).numpy())
        expected = torch.from_numpy(spline(wanted, wanted)).flatten()
        assert (resized[:, head].double() - expected).abs().max() < 1e-6
    grid = resized.view(target, target, 3)
    middle = table.view(side, side, 3)[side // 2, side // 2]
    assert torch.allclose(grid[target // 2, target // 2], middle, atol=1e-6)  # no offset stays no offset


def test_geometric_tables_are_an_option_of_loading():
    source, model = small(window_size=2), small(window_size=4)
    line = load_contents(model, source.state_dict(), "x", tables="geometric")
    assert "4 position tables resized geometrically" in line
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(model.state_dict()[name], resize_geometrically(source.state_dict()[name], 49))
    assert not torch.equal(model.state_dict()[name], resize_bias_table(source.state_dict()[name], 49))
