"""Faster construction of large models, dominated by drawing truncated normal weights."""

from collections.abc import Callable

import pytest
import timm.models.swin_transformer_v2
import timm.models.vision_transformer
import torch
from torch import nn

from tests.tools.builders import randomize


def uninitialized(build: Callable[[], nn.Module]) -> nn.Module:
    """Builds a model without drawing the weights of its layers, which a test then replaces; in evaluation mode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, *_, **__: tensor)
        for owner in (torch.nn.init, timm.models.swin_transformer_v2, timm.models.vision_transformer):
            patch.setattr(owner, "trunc_normal_", lambda tensor, *_, **__: tensor)
        return build().eval()


def fill(model: nn.Module) -> nn.Module:
    """Like `randomize`, and scales all other weights to their inputs, so that no branch is negligible."""
    torch.manual_seed(0)
    for p in model.parameters():
        if p.ndim > 1:
            bound = (3 / p[0].numel()) ** 0.5  # a deviation of 1 / sqrt(inputs)
            p.data.uniform_(-bound, bound)
    return randomize(model)
