"""Wrapping for several ranks, and the norm of the gradient."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_are_exchanged_in_the_last_backward_pass_only(group):
    model = nn.Linear(2, 1, bias=False)
    wrapped = wrap(model, World(0, 2))
    assert isinstance(wrapped, DistributedDataParallel) and wrapped.module is model
    exchanged = []

    def hook(_, bucket):
        exchanged.append(bucket.buffer().tolist())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, hook)
    for values, last in (([1.0, 2.0], False), ([10.0, 20.0], True)):
        with synchronize(wrapped, last):
            wrapped(torch.tensor([values])).sum().backward()
    assert exchanged == [[11.0, 22.0]]  # the sum of both, once


def test_parameters_without_a_gradient_do_not_count():
    made = [*parameters([3.0, 4.0]), torch.zeros(2, requires_grad=True)]
    assert clip_gradients(made, 0) == (5.0, True)
