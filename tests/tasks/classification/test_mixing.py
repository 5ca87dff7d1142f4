"""Mixup and cutmix by value, for every mode and batch size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.classification.mixing import MixingOptions, build_mixing
from tests.tools.errors import raises
from utils.errors import ConfigError


def mixing(**more):
    recipe = MixingOptions(0.8, 1.0, None, prob=1.0, switch_prob=0.5, mode="batch", label_smoothing=0.1)
    return build_mixing(4, replace(recipe, **more), (8, 8))


def test_nothing_to_mix_is_none():
    assert mixing(mixup=0.0, cutmix=0.0) is None and build_mixing(4, None, (8, 8)) is None
    assert mixing(mixup=0.0, cutmix=0.0, minmax=(0.2, 0.8)) is not None


@pytest.mark.parametrize("minmax", [(0.5, 0.5), (1.0, 1.0), (0.5, 0.6)])
def test_a_range_of_boxes_without_a_pixel_is_rejected(minmax):
    with raises(ConfigError, "AUG.CUTMIX_MINMAX", f"{minmax[0]:g} and {minmax[1]:g}", "8x8"):
        mixing(minmax=minmax)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("kind", [{}, {"mixup": 0.0}, {"cutmix": 0.0}, {"minmax": (0.2, 0.8)}])
def test_fault_60_images_and_targets_are_mixed_alike(mode, size, kind):
    """Image i is filled with one-hot colour i, so its mean gives the fractions that the target must have."""
    for seed in range(5):
        np.random.seed(seed)
        images = torch.eye(size)[:, :, None, None].expand(size, size, 8, 8).clone()
        labels = torch.arange(size) % 4
        mixed, targets = mixing(mode=mode, label_smoothing=0.0, **kind)(images, labels)
        fractions = mixed.mean(dim=(2, 3))  # (size, size): fraction of image j in result i
        expected = fractions @ torch.nn.functional.one_hot(labels, 4).float()
        torch.testing.assert_close(targets, expected, atol=1e-5, rtol=0)


def test_smoothing_and_mixing_together():
    np.random.seed(0)
    mixer = mixing(cutmix=0.0)
    _, targets = mixer(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))
    np.random.seed(0)
    assert np.random.rand() < 1.0  # whether to mix at all
    lam = float(np.random.beta(0.8, 0.8))  # timm's draw
    first = torch.tensor([0.925, 0.025, 0.025, 0.025]) * lam + torch.tensor([0.025, 0.925, 0.025, 0.025]) * (1 - lam)
    torch.testing.assert_close(targets[0], first)
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
