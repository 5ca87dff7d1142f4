"""The state of a run survives a round trip through a checkpoint."""

import copy
import math

import pytest
import torch
from torch import nn

from models.weights.load import load_contents
from tests.tools.builders import CPU, batches, objective, plan, shape, small, train_state
from utils.precision import choose_precision
from utils.training.loop import train_epoch
from utils.training.optim import OptimizerOptions, set_learning_rate
from utils.training.schedule import learning_rate
from utils.training.state import Mean


def trained(ema=0.9):
    state = train_state(small(), ema_decay=ema)
    train_epoch(state, batches(3), objective(), plan(), lambda update: None)
    state.best_value, state.best_epoch = 42.0, 0
    return state


def step(state):
    """One update of a linear layer, at a fixed rate."""
    state.model(torch.tensor([[1.0, -2.0]])).square().sum().backward()
    set_learning_rate(state.optimizer, lambda _: 0.01)
    state.optimizer.step()
    state.optimizer.zero_grad()


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
    with pytest.raises(RuntimeError, match="optimizer is AdamW, .* is SGD"):
        restored(saved, optimizer=OptimizerOptions("sgd"))
    with pytest.raises(RuntimeError, match="parameter groups have"):
        restored(saved, optimizer=OptimizerOptions(layer_decay=0.5))
    lacking = copy.deepcopy(saved)
    del lacking["optimizer"]["state"][0]["exp_avg_sq"]
    with pytest.raises(RuntimeError, match="exp_avg_sq"):
        restored(lacking)
    state = restored(saved, optimizer=OptimizerOptions(weight_decay=0.3))
    assert sorted(group["weight_decay"] for group in state.optimizer.param_groups) == [0.0, 0.3]


def test_starting_later_counts_what_was_left_out():
    state = train_state(small())
    state.start_at(2, plan(shape(42, batch_size=8)))
    assert state.evaluated_at == state.update  # nothing to evaluate before the first update
    assert (state.epoch, state.update, state.samples) == (2, 12, 84)


def test_fault_50_the_learning_rate_goes_by_epochs_where_the_data_changed_their_length():
    state, now = train_state(small()), plan(epochs=4)
    state.epoch, state.step, state.update = 3, 0, 999  # three epochs of 333 updates, now of ten
    assert state.done(now) == 30
    updates = []
    train_epoch(state, batches(3), objective(), now, updates.append)
    assert [update.learning_rate for update in updates] == [learning_rate(done, now, 1.0) for done in (30, 31, 32)]
    state.step = 200  # of an epoch that had 333
    assert state.done(now) == 40


@pytest.mark.parametrize(
    "name",
    [
        "sgd",
        "fused_adam",
        "fused_lamb",
    ],
)
def test_every_optimizer_trains_on_with_the_same_bits(name):
    options = {"optimizer": OptimizerOptions(name)}
    one = train_state(nn.Linear(2, 2), **options)
    step(one)
    other = train_state(copy.deepcopy(one.model), **options)
    other.load_state_dict(copy.deepcopy(one.state_dict()), load_contents, "x")
    for state in (one, other):
        step(state)
    assert torch.equal(one.model.weight, other.model.weight)


def test_the_scaler_of_float16_is_restored():
    half = choose_precision(CPU, True, "float16")
    state = train_state(nn.Linear(1, 1), half)
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 1024.0, "_growth_tracker": 7})
    saved, other = state.state_dict(), train_state(nn.Linear(1, 1), half)
    other.load_state_dict(saved, load_contents, "x")
    assert other.scaler.state_dict() == saved["scaler"] and other.scaler.get_scale() == 1024.0


def test_without_saved_averages_they_start_at_the_weights():
    saved = trained(ema=None).state_dict()
    assert "model_ema" not in saved
    state = restored(saved, ema_decay=0.9)
    assert state.evaluated is not state.model
    pairs = zip(state.evaluated.parameters(), state.model.parameters(), strict=True)
    assert all(torch.equal(average, weight) for average, weight in pairs)


def test_means_and_counters_are_restored():
    one = trained()
    one.means["loss/part"] = Mean(3.0, 2.0)
    one.skipped, one.skipped_in_row = 5, 1
    saved = one.state_dict()
    other = restored(copy.deepcopy(saved), ema_decay=0.9)
    found = other.state_dict()
    assert all(found[key] == saved[key] for key in ("counters", "means", "best", "scaler", "optimizer_name"))
    assert other.means["loss/part"].value == 1.5
    other.reset_best()
    assert (other.best_value, other.best_epoch) == (None, -1)


def test_the_optimizer_holds_what_wrapping_made_of_the_loaded_weights(monkeypatch):
    """Sharding replaces the parameters when the model is wrapped."""

    def shard(model, world):
        model.weight = nn.Parameter(model.weight.detach().clone())
        return nn.Sequential(model)

    monkeypatch.setattr("utils.training.state.wrap", shard)
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 7.0)  # the loaded weights
    before = model.weight
    state = train_state(model, ema_decay=0.9)
    assert state.wrapped[0] is state.model is model and model.weight is not before
    assert [p for group in state.optimizer.param_groups for p in group["params"]] == [model.weight]
    assert (model.weight == 7).all() and (state.evaluated.weight == 7).all()


@pytest.mark.parametrize(
    ("name", "ema", "copies"), [("adamw", None, 3), ("adamw", 0.9, 4), ("sgd", None, 2), ("sgd", 0.9, 3)]
)
def test_the_size_of_a_checkpoint_counts_its_copies(name, ema, copies):
    state = train_state(nn.Linear(10, 10), ema_decay=ema, optimizer=OptimizerOptions(name))
    assert state.checkpoint_bytes() == copies * 110 * 4
    lines = state.describe()
    assert "on 100 parameters in 1 tensors, none on 10 parameters in 1 tensors" in lines[0]
    assert ("EMA of the weights with decay 0.9" in lines[1]) == (ema is not None)


def test_a_mean_can_be_carried_on():
    mean = Mean()
    assert math.isnan(mean.value)
    mean.add(1.0)
    mean.add(4.0, weight=2.0)
    assert mean.value == 3.0
    again = Mean(mean.total, mean.weight)
    again.add(7.0)
    assert again.value == 4.0
    again.clear()
    assert math.isnan(again.value)
