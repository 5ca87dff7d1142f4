"""Wrapping for several ranks, and the norm of the gradient. tests/utils/distributed/test_world.py has real ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.tools.builders import CPU, small
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import DistributedError
from utils.training.parallel import check_weights, gradient_norms, synchronize, synchronize_buffers, wrap


def model_with(*gradients):
    """A model with a parameter for each gradient; the parameter has none where it is None."""
    model = nn.ParameterList(torch.zeros(2) for _ in gradients)
    for parameter, gradient in zip(model, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    return model


def test_a_single_process_trains_the_model_itself():
    model = nn.Linear(2, 2)
    assert wrap(model, World()) is model
    with synchronize(model, enabled=False):  # nothing to synchronise
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None


def test_norms_are_those_of_the_parameters_that_have_a_gradient_and_change_none():
    model = model_with([3.0, 4.0], None, [0.0, 2.0])
    names, norms = gradient_norms(model)
    assert names == ("0", "2") and norms.tolist() == [5.0, 2.0]
    assert model[0].grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_its_norm(bad):
    assert gradient_norms(model_with([1.0, bad], [0.0, 1.0]))[1].isfinite().tolist() == [False, True]


def test_half_precision_gradients_do_not_overflow_their_norm():
    model = model_with([0.0, 0.0]).half()
    model[0].grad = torch.full((2,), 60000.0, dtype=torch.float16)
    assert gradient_norms(model)[1].item() == pytest.approx(60000 * 2**0.5, rel=1e-3)


def test_a_single_process_has_nobody_to_differ_from():
    model = nn.BatchNorm1d(2)
    check_weights(model, World(), "epoch 0")
    synchronize_buffers([model], World())
    assert model.running_mean.tolist() == [0.0, 0.0]


@dataclass(frozen=True)
class Others(World):
    """Rank 0 of three; `change` is what the others have in place of its sums."""

    size: int = 3
    change: Callable[[list[int]], list[int]] = list

    def gather_objects(self, value):
        return [value, list(value), self.change(value)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fault_33_the_sums_of_bits_are_compared_for_every_type_of_weights(dtype):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(dtype)
    check_weights(model, Others(), "epoch 1, update 500")
    with raises(DistributedError, "rank 2", "rank 0", "epoch 1, update 500", "1.weight"):
        check_weights(model, Others(change=lambda sums: [*sums[:2], sums[2] + 1, sums[3] - 1]), "epoch 1, update 500")


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


@pytest.mark.parametrize(("model", "sent"), [(small("swinv2"), False), (nn.BatchNorm2d(3), True)])
def test_buffers_travel_with_every_update_only_if_training_changes_them(model, sent, group, monkeypatch):
    wrapped, synchronized = wrap(model, World(0, 2, CPU)), []
    monkeypatch.setattr(wrapped, "_sync_buffers", lambda: synchronized.append(True))
    wrapped(torch.ones(2, 3, 32, 32))
    assert bool(synchronized) is sent
