"""What is exported, and how it is compared."""

import math

import torch
from torch import nn

from tasks.export import Export


class Sum(nn.Module):
    def forward(self, images):
        return images.sum((2, 3))


def test_the_largest_difference_counts():
    export = Export(Sum(), (3, 4, 5), 2)
    assert export.batch == 2 and [each.shape for each in export.example(7)] == [(7, 3, 4, 5)]
    assert export.difference(lambda images: images.sum((2, 3))) == 0

    def changed(images):
        out = images.sum((2, 3))
        if len(images) == 8:
            out[7, 2] += out.abs().max() / 2
        return out

    assert math.isclose(export.difference(changed), 0.5, rel_tol=1e-5)
    assert math.isnan(export.difference(lambda images: images.sum((2, 3)) * torch.nan))
