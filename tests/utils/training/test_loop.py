"""The training loop against a plain one, and what it does with bad gradients."""

import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from models.registry import build_model
from tasks.classification.task import Classification
from tests.tools.builders import CPU, batches, objective, plan, randomize, small, take, train_state
from utils.batches import Batch
from utils.precision import Precision, choose_precision
from utils.training.loop import train_epoch
from utils.training.optim import OptimizerOptions
from utils.training.schedule import learning_rate
from utils.training.update import Readback


def run(run_state, work, run_plan=None):
    updates = []
    train_epoch(run_state, work, objective(precision=run_state.precision), run_plan or plan(), updates.append)
    return updates


def loss_of(update):
    return update.losses["loss"].item()


@pytest.mark.slow
def test_ten_updates_equal_a_plain_loop_around_timm():
    """Swin-T at 128, mixed targets, AdamW, clipping, warm-up: losses of two loops with equal weights and batches."""
    torch.manual_seed(0)
    sizes = {"img_size": (128, 128), "window_size": 4, "num_classes": 10, "drop_path_rate": 0.0}
    peer = randomize(timm.create_model("swin_tiny_patch4_window7_224", **sizes)).train()
    ours = build_model("swin", **sizes)
    take(ours, peer)
    start = ours.head.weight.detach().clone()
    recipe, mix = plan(warmup_epochs=1), Mixup(0.8, 1.0, num_classes=10, label_smoothing=0.1)
    np.random.seed(0)
    work = []
    for batch in batches(10, 2, classes=10, pixels=128):
        images, targets = mix(batch.images.clone(), batch.targets)
        work.append(Batch(images, targets))

    decay = [p for n, p in peer.named_parameters() if p.ndim > 1 and "bias_table" not in n]
    rest = [p for n, p in peer.named_parameters() if p.ndim <= 1 or "bias_table" in n]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}])
    expected = []
    for i, batch in enumerate(work):
        loss = SoftTargetCrossEntropy()(peer(batch.images), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 5.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-6 + (1e-3 - 1e-6) * i / 10
        optimizer.step()
        expected.append(loss.item())

    got = [loss_of(u) for u in run(train_state(ours), work, recipe)]
    assert got == pytest.approx(expected, abs=1e-5)
    assert (ours.head.weight.detach() - start).abs().mean() > 1e-4  # the ten updates did move the weights


def test_learning_rates_follow_the_schedule_and_counters_the_data():
    run_state, recipe = train_state(small()), plan()
    updates = run(run_state, batches(10))
    assert [u.learning_rate for u in updates] == [learning_rate(i, recipe) for i in range(10)]
    assert (run_state.step, run_state.update, run_state.samples, run_state.skipped) == (10, 10, 40, 0)


def test_accumulation_equals_the_big_batch():
    whole = batches(3, 8)
    halves = []
    for batch in whole:
        for part, last in ((slice(0, 4), False), (slice(4, 8), True)):
            halves.append(Batch(batch.images[part], batch.targets[part], (), 0.5, last))
    one, two = train_state(small()), train_state(small())
    losses = [[loss_of(u) for u in run(s, w)] for s, w in ((one, whole), (two, halves))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert two.update == 3
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_clipping_and_its_absence(limit):
    run_state = train_state(small(), optimizer=OptimizerOptions("sgd", momentum=0.0, weight_decay=0.0))
    before = torch.cat([p.detach().flatten().clone() for p in run_state.model.parameters()])
    (update,) = run(run_state, batches(1), plan(clip_grad=limit, warmup_lr=1.0))
    moved = (torch.cat([p.detach().flatten() for p in run_state.model.parameters()]) - before).norm().item()
    assert update.grad_norm > 0.02  # of the gradient before clipping
    assert moved == pytest.approx(limit or update.grad_norm, rel=1e-3)


def poison(batch):
    return Batch(batch.images * math.nan, batch.targets)


def test_fault_34_an_update_without_a_finite_gradient_moves_nothing():
    work = batches(3)
    clean, dirty = train_state(small(), ema_decay=0.9), train_state(small(), ema_decay=0.9)
    run(clean, [work[0], work[2]])
    updates = run(dirty, [work[0], poison(work[1]), work[2]])
    assert [u.applied for u in updates] == [True, False, True]
    assert (dirty.update, dirty.skipped, dirty.skipped_in_row) == (3, 1, 0)
    for a, b in (
        (clean.model, dirty.model),
        (clean.evaluated, dirty.evaluated),
    ):
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y)


def test_fault_35_an_update_without_a_finite_gradient_says_where_and_with_which_samples():
    first, second, third = batches(3)
    bad = replace(poison(second), samples=(4, 5))
    halves = [replace(first, ends_update=False, weight=0.5, samples=(0, 1)), replace(bad, weight=0.5)]
    run_state = train_state(small())
    good, skipped, after = run(run_state, [replace(first, samples=(7,)), *halves, third])
    assert (good.samples, skipped.samples, after.samples) == ((7,), (0, 1, 4, 5), ())
    assert good.applied and not skipped.applied and after.applied
    norms = skipped.stage_norms()
    assert list(norms) == ["patch_embed", "layers.0", "layers.1", "norm", "head"]
    assert not math.isfinite(norms["patch_embed"]) and not math.isfinite(skipped.grad_norm)
    assert run_state.skipped_in_row == 0


def test_skipped_updates_in_a_row_are_counted_and_do_not_end_the_loop():
    """The session ends the run."""
    run_state = train_state(small())
    run(run_state, [*batches(1), *(poison(b) for b in batches(5))])
    assert (run_state.update, run_state.skipped, run_state.skipped_in_row) == (6, 5, 5)


def test_fault_36_float16_overflow_is_skipped_and_the_scale_falls():
    run_state = train_state(small(), precision=choose_precision(CPU, True, "float16"))
    run_state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    updates = run(run_state, batches(2))
    assert [u.applied for u in updates] == [False, False]
    assert run_state.scaler.get_scale() == 2.0**38
    run_state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    assert run(run_state, batches(1))[0].applied


def test_averaged_weights_follow():
    run_state = train_state(small(), ema_decay=0.5)
    start = run_state.model.head.weight.detach().clone()
    run(run_state, batches(1))
    first = run_state.model.head.weight.detach().clone()
    assert torch.equal(run_state.evaluated.head.weight, first)  # the average starts at the first update
    run(run_state, batches(1))
    second = run_state.model.head.weight.detach()
    torch.testing.assert_close(run_state.evaluated.head.weight, (first + second) / 2)
    assert not torch.equal(start, first)


def test_averaged_running_statistics_do_not_depend_on_when_the_state_is_read():
    """A model of BatchNorm, whose statistics the forward pass changes: settled after every update, or with the next."""
    averages = []
    for at_once in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5), nn.BatchNorm1d(5))
        run_state = train_state(model, ema_decay=0.5)
        sync = lambda update, own=run_state, now=at_once: own.sync() if now else None  # noqa: E731
        train_epoch(run_state, batches(4), objective(), plan(), sync)
        averages.append(run_state.evaluated.state_dict())
    for one, other in zip(averages[0].values(), averages[1].values(), strict=True):
        assert torch.equal(one, other)


READS = ("__bool__", "__float__", "__int__", "__index__", "cpu", "item", "numpy", "tolist")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_update_waits_for_the_device_and_its_outcome_is_read_with_the_next_one(dtype, monkeypatch):
    events, loss, read = [], Classification.loss, Readback.numbers.func
    numbers = cached_property(lambda self: (events.append("read"), read(self))[1])
    numbers.__set_name__(Readback, "numbers")
    monkeypatch.setattr(Readback, "numbers", numbers)
    monkeypatch.setattr(Classification, "loss", lambda *args: (events.append("forward"), loss(*args))[1])
    # without stochastic depth, which is drawn on the CPU by design
    run_state = train_state(small(), precision=Precision("cpu", dtype), ema_decay=0.9)
    run(run_state, batches(1))
    events.clear()
    reads = []
    for name in READS:
        original = getattr(torch.Tensor, name)
        counted = lambda self, *args, call=original, as_=name: (reads.append(as_), call(self, *args))[1]  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, counted)
    run(run_state, batches(3))
    monkeypatch.undo()
    assert reads == ["tolist"] * 3  # the outcomes
    assert events == ["forward", "forward", "read", "forward", "read", "read"]
