"""Patches, merging and the MLP, by value; the MLP's other forms: tests/models/ops/test_linear.py."""

import pytest
import torch
import torch.nn.functional as F

from models.layers import Mlp, PatchEmbed, PatchMerging, PostNormMerging, gather_patches


def test_neighbours_are_gathered_down_the_first_column_then_the_second():
    x = torch.arange(8.0).view(1, 2, 4, 1)
    assert gather_patches(x)[0, 0].tolist() == [[0, 4, 1, 5], [2, 6, 3, 7]]


def test_odd_maps_are_padded_with_zeros():
    merged = gather_patches(torch.ones(1, 3, 3, 2))
    assert merged.shape == (1, 2, 2, 8)
    assert merged[0, 1, 1].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_merging_normalises_before_the_reduction_in_v1_and_after_it_in_v2():
    x = torch.randn(2, 4, 6, 5)
    before, after = PatchMerging(5), PostNormMerging(5)
    gathered = gather_patches(x)
    assert before(x).shape == after(x).shape == (2, 2, 3, 10)
    torch.testing.assert_close(before(x), F.layer_norm(gathered, (20,)) @ before.reduction.weight.T)
    torch.testing.assert_close(after(x), F.layer_norm(gathered @ after.reduction.weight.T, (10,)))


def test_pixels_beyond_the_last_whole_patch_are_dropped():
    embed = PatchEmbed(4, 3, 8)
    assert embed(torch.randn(1, 3, 333, 257)).shape == (1, 83, 64, 8)
    with pytest.raises(ValueError, match="smaller than a patch"):
        embed(torch.randn(1, 3, 3, 8))


def test_the_mlp_drops_out_after_both_linear_layers():
    x = torch.randn(4, 6)
    mlp = Mlp(6, 24, dropout=0.5)
    torch.testing.assert_close(mlp.eval()(x), mlp.fc2(F.gelu(mlp.fc1(x))))
    torch.manual_seed(0)
    hidden = F.dropout(F.gelu(mlp.fc1(x)), 0.5)
    expected = F.dropout(mlp.fc2(hidden), 0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(mlp.train()(x), expected)


def test_hooks_on_the_layers_of_the_mlp_are_called():
    mlp, seen = Mlp(6, 24).eval(), []
    mlp.act.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    x = torch.randn(2, 6)
    with torch.no_grad():
        mlp(x)
        torch.testing.assert_close(seen[0], F.gelu(mlp.fc1(x)))


def test_hooks_on_gradients_of_the_layers_of_the_mlp_are_called():
    mlp, seen = Mlp(6, 24), []
    mlp.fc2.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    mlp(torch.randn(2, 6)).sum().backward()
    assert seen == [(2, 6)]


def test_a_padding_patch_embedding_completes_patches_with_zeros():
    torch.manual_seed(0)
    layer = PatchEmbed(4, 3, 6, pad=True)
    image = torch.randn(1, 3, 5, 9)
    padded = torch.zeros(1, 3, 8, 12)
    padded[:, :, :5, :9] = image
    assert layer(image).shape == (1, 2, 3, 6) and torch.equal(layer(image), layer(padded))
    assert layer(image[:, :, :2, :3]).shape == (1, 1, 1, 6)
