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


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills the parameters and buffers of a model with random values, and returns it."""
    torch.manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            nn.init.normal_(value, std=0.3)
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have equal tensors under equal names."""
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
