"""Mixup and cutmix by value, for every mode and batch size."""

import numpy as np
import pytest
import torch

from data.pipeline.mixing import build_mixing


def mixing(**more):
    when = {"prob": 1.0, "switch_prob": 0.5, "mode": more.pop("mode", "batch")}
    return build_mixing(
        4, **{"mixup": 0.8, "cutmix": 1.0, "minmax": None, "label_smoothing": 0.1, "when": when, **more}
    )


def test_nothing_to_mix_is_none():
    assert mixing(mixup=0.0, cutmix=0.0) is None
    assert mixing(mixup=0.0, cutmix=0.0, minmax=[0.2, 0.8]) is not None


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("kind", [{}, {"mixup": 0.0}, {"cutmix": 0.0}, {"minmax": [0.2, 0.8]}])
def test_fault_60_images_and_targets_are_mixed_alike(mode, size, kind):
    """Image i is filled with one-hot colour i, so its mean tells the shares that the target must show."""
    for seed in range(5):
        np.random.seed(seed)
        images = torch.eye(size)[:, :, None, None].expand(size, size, 8, 8).clone()
        labels = torch.arange(size) % 4
        mixed, targets = mixing(mode=mode, label_smoothing=0.0, **kind)(images, labels)
        shares = mixed.mean(dim=(2, 3))  # (size, size): share of image j in result i
        expected = shares @ torch.nn.functional.one_hot(labels, 4).float()
        torch.testing.assert_close(targets, expected, atol=1e-5, rtol=0)


def test_smoothing_and_mixing_together():
    np.random.seed(0)
    mixer = mixing(cutmix=0.0)
    _, targets = mixer(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))
    np.random.seed(0)
    lam, _ = mixer._params_per_batch()
    first = torch.tensor([0.925, 0.025, 0.025, 0.025]) * lam + torch.tensor([0.025, 0.925, 0.025, 0.025]) * (1 - lam)
    torch.testing.assert_close(targets[0], first)
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
