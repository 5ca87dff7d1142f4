"""Targets of images with several labels, and their mixtures."""

import numpy as np
import pytest
import torch

from data.pipeline.sample import Sample
from tasks.classification.mixing import MixingOptions, build_mixing
from tasks.multilabel.labels import SetMixing, StackSets
from tests.tasks.multilabel.drawn import CLASSES


def test_sets_are_stacked_and_absent_ones_left_out():
    image = np.zeros((3, 2, 2), np.uint8)
    collated = StackSets(CLASSES)([Sample(image, (0, 2)), Sample(image, ()), Sample(image, (3,))])
    assert collated.targets.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert StackSets(CLASSES)([Sample(image, None)]).targets is None


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_sets_are_blended_as_their_images_are(mode):
    options = MixingOptions(
        mixup=0.8, cutmix=0.0, minmax=None, prob=1.0, switch_prob=0.5, mode=mode, label_smoothing=0.1
    )
    mixing = build_mixing(CLASSES, options, (8, 8), SetMixing)
    np.random.seed(0)
    targets = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    images, mixed = mixing(targets[:, :, None, None].repeat(1, 1, 8, 8), targets.clone())
    torch.testing.assert_close(images[:, :, 0, 0], mixed)
    assert not torch.equal(mixed, targets)
