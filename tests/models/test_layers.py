"""Patches, merging and stochastic depth by value."""

import pytest
import torch
from torch import nn

from models.layers import PatchEmbed, add_branch, gather_patches


def test_gathered_neighbours_come_down_the_first_column_then_the_second():
    x = torch.arange(8.0).view(1, 2, 4, 1)
    assert gather_patches(x)[0, 0].tolist() == [[0, 4, 1, 5], [2, 6, 3, 7]]


def test_odd_maps_are_padded_with_zeros():
    merged = gather_patches(torch.ones(1, 3, 3, 2))
    assert merged.shape == (1, 2, 2, 8)
    assert merged[0, 1, 1].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_patches_beyond_the_last_whole_one_are_left_out():
    embed = PatchEmbed(4, 3, 8)
    assert embed(torch.randn(1, 3, 333, 257)).shape == (1, 83, 64, 8)
    with pytest.raises(ValueError, match="smaller than a patch"):
        embed(torch.randn(1, 3, 3, 8))


def test_without_stochastic_depth_a_branch_is_added():
    x = torch.randn(3, 2)
    assert torch.equal(add_branch(x, lambda y: 2 * y, 0.0), 3 * x)


def test_kept_samples_are_scaled_and_dropped_ones_pass_through():
    torch.manual_seed(3)
    kept = torch.rand(64) >= 0.25
    torch.manual_seed(3)
    x = torch.ones(64, 5)
    out = add_branch(x, lambda y: 3 * y, 0.25)
    assert torch.equal(out[kept], torch.full((int(kept.sum()), 5), 1 + 3 / 0.75))
    assert torch.equal(out[~kept], x[~kept])
    assert 0 < kept.sum() < 64


def test_a_dropped_branch_still_takes_part_in_the_backward_pass():
    branch = nn.Linear(4, 4)
    torch.manual_seed(0)
    x = torch.randn(1, 4)
    while True:
        out = add_branch(x, branch, 0.999)
        if torch.equal(out, x):
            break
    out.sum().backward()
    assert branch.weight.grad is not None and torch.equal(branch.weight.grad, torch.zeros(4, 4))
