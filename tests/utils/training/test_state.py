"""The state of a run survives a round trip through a checkpoint."""

import copy

import pytest
import torch

from models.weights.load import load_contents
from tests.builders import batches, objective, plan, shape, small, train_state
from utils.training.loop import train_epoch
from utils.training.optim import OptimizerOptions


def trained(ema=0.9):
    state = train_state(small(), ema_decay=ema)
    train_epoch(state, batches(3), objective(), plan(), lambda update: None)
    state.best_value, state.best_epoch = 42.0, 0
    return state


def restored(saved, **more):
    model = small()
    load_contents(model, {"model": saved["model"]}, "x")
    state = train_state(model, **more)
    state.load_state_dict(saved, load_contents, "x")
    return state


def test_a_restored_state_trains_on_with_the_same_bits():
    one = trained()
    other = restored(copy.deepcopy(one.state_dict()), ema_decay=0.9)
    for state in (one, other):
        train_epoch(state, batches(3), objective(), plan(), lambda update: None)
    for a, b in ((one.model, other.model), (one.evaluated, other.evaluated)):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert (other.update, other.samples, other.best_value, other.best_epoch) == (6, 24, 42.0, 0)


@pytest.mark.parametrize(("top1", "epoch", "best"), [(71.5, 3, 71.5), (-1.0, -1, None)])
def test_checkpoints_from_before_metrics_had_names(top1, epoch, best):
    saved = trained(ema=None).state_dict()
    del saved["best"]
    saved["counters"] |= {"best_top1": top1, "best_epoch": epoch}
    state = restored(saved)
    assert (state.best_value, state.best_epoch) == (best, epoch)


def test_the_optimizer_holds_the_parameters_of_the_model_that_trains():
    state = train_state(small())
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in state.wrapped.parameters()}
    assert state.evaluated is state.model and not state.scaler.is_enabled()


def test_another_optimizer_is_refused_and_settings_are_those_of_the_run():
    saved = trained(ema=None).state_dict()
    with pytest.raises(RuntimeError, match="its optimizer is AdamW, this run's SGD"):
        restored(saved, optimizer=OptimizerOptions("sgd"))
    with pytest.raises(RuntimeError, match="its parameter groups have"):
        restored(saved, optimizer=OptimizerOptions(layer_decay=0.5))
    state = restored(saved, optimizer=OptimizerOptions(weight_decay=0.3))
    assert sorted(group["weight_decay"] for group in state.optimizer.param_groups) == [0.0, 0.3]


def test_starting_later_counts_what_was_left_out():
    state = train_state(small())
    state.start_at(2, plan(shape(42, batch_size=8)))
    assert (state.epoch, state.update, state.samples) == (2, 12, 84)
