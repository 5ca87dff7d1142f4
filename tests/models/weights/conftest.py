"""Helpers of the tests of weights."""

import torch
from torch import nn

from tests.tools.builders import small


def filled(family: str = "swin", seed: int = 0, **more: object) -> nn.Module:
    """A small model in which every parameter is random: no two tensors, and no two seeds, are alike."""
    model = small(family, **more)
    torch.manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model
