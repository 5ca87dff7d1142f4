"""Wrapping for several ranks, and the norm of the gradient."""

import pytest
import torch
from torch import nn

from utils.distributed import World
from utils.training.parallel import clip_gradients, synchronize, wrap


def parameters(*gradients):
    made = [nn.Parameter(torch.zeros(len(g))) for g in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return made


def test_a_single_process_trains_the_model_itself():
    model = nn.Linear(2, 2)
    assert wrap(model, World()) is model
    with synchronize(model, enabled=False):  # nothing to synchronise
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize(("limit", "clipped"), [(0.0, 1.0), (10.0, 1.0), (1.0, 0.2)])
def test_the_norm_is_that_before_clipping(limit, clipped):
    made = parameters([3.0, 0.0], [4.0])
    norm, finite = clip_gradients(made, limit)
    assert (norm, finite) == (5.0, True)
    assert made[0].grad[0].item() == pytest.approx(3.0 * clipped, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_reported(bad):
    assert clip_gradients(parameters([1.0, bad], [0.0]), 5.0)[1] is False
