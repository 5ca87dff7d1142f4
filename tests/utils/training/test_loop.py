"""The training loop against a plain one, and what it does with bad gradients."""

import math

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from data.loaders import Batch
from models.registry import build_model
from tests.models.test_registry import SMALL
from tests.models.test_swin import randomise, take
from utils.distributed import World
from utils.errors import NumericsError
from utils.precision import choose_precision
from utils.training.loop import evaluate, train_epoch
from utils.training.plan import RunPlan
from utils.training.schedule import learning_rate
from utils.training.state import new_state

CPU = torch.device("cpu")
OPTIMIZER = {"name": "adamw", "eps": 1e-8, "betas": [0.9, 0.999], "momentum": 0.9}


def plan(**more):
    fields = {
        "world": 1,
        "batch_size": 4,
        "accumulation": 1,
        "train_size": 40,
        "epochs": 2,
        "warmup_epochs": 1,
        "base_lr": 0.1,
        "peak_lr": 1e-3,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "scheduler": "cosine",
        "warmup_prefix": True,
        "decay_epochs": 1,
        "decay_rate": 0.1,
        "milestones": (),
        "gamma": 0.1,
        "clip_grad": 5.0,
        "max_skipped": 3,
    }
    return RunPlan(**{**fields, **more})


def state(model, precision=None, ema=None, **more):
    arguments = {"weight_decay": 0.05, "layer_decay": 1.0, "optimizer": OPTIMIZER, **more}
    return new_state(model, World(), precision or choose_precision(CPU, False, "auto"), ema=ema, **arguments)


def small(**more):
    torch.manual_seed(0)
    return build_model("swin", **{**SMALL, "num_classes": 5, "drop_path_rate": 0.0, **more})


def batches(count, size=4, classes=5, pixels=32, weight=1.0):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, pixels, pixels, generator=generator)
    targets = torch.randint(classes, (count, size), generator=generator)
    return [Batch(i, t, weight, True) for i, t in zip(images, targets, strict=True)]


def run(run_state, work, run_plan=None):
    updates = []
    train_epoch(run_state, work, run_plan or plan(), 0.1, updates.append)
    return updates


@pytest.mark.slow
def test_ten_updates_equal_a_plain_loop_around_timm():
    """Swin-T at 224, mixed targets, AdamW, clipping, warm-up: losses of two loops with equal weights and batches."""
    peer = randomise(timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, drop_path_rate=0.0)).train()
    ours = build_model("swin", num_classes=10, drop_path_rate=0.0)
    take(ours, peer)
    start = ours.head.weight.detach().clone()
    recipe, mix = plan(train_size=40, warmup_epochs=1), Mixup(0.8, 1.0, num_classes=10, label_smoothing=0.1)
    np.random.seed(0)
    work = []
    for batch in batches(10, 4, classes=10, pixels=224):
        images, targets = mix(batch.images.clone(), batch.targets)
        work.append(Batch(images, targets, 1.0, True))

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

    got = [u.loss.item() for u in run(state(ours), work, recipe)]
    assert got == pytest.approx(expected, abs=1e-5)
    assert (ours.head.weight.detach() - start).abs().mean() > 1e-4  # the ten updates did move the weights


def test_learning_rates_follow_the_schedule_and_counters_the_data():
    run_state, recipe = state(small()), plan()
    updates = run(run_state, batches(10))
    assert [u.learning_rate for u in updates] == [learning_rate(i, recipe) for i in range(10)]
    assert (run_state.step, run_state.update, run_state.samples, run_state.skipped) == (10, 10, 40, 0)


def test_accumulation_equals_the_big_batch():
    whole = batches(3, 8)
    halves = []
    for batch in whole:
        for part, last in ((slice(0, 4), False), (slice(4, 8), True)):
            halves.append(Batch(batch.images[part], batch.targets[part], 0.5, last))
    one, two = state(small()), state(small())
    losses = [[u.loss.item() for u in run(s, w)] for s, w in ((one, whole), (two, halves))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert two.update == 3
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_clipping_and_its_absence(limit):
    run_state = state(small(), optimizer={**OPTIMIZER, "name": "sgd", "momentum": 0.0}, weight_decay=0.0)
    before = torch.cat([p.detach().flatten().clone() for p in run_state.model.parameters()])
    (update,) = run(run_state, batches(1), plan(clip_grad=limit, warmup_lr=1.0))
    moved = (torch.cat([p.detach().flatten() for p in run_state.model.parameters()]) - before).norm().item()
    assert update.grad_norm > 0.02  # of the gradient before clipping
    assert moved == pytest.approx(limit or update.grad_norm, rel=1e-3)


def poison(batch):
    return Batch(batch.images * math.nan, batch.targets, 1.0, True)


def test_an_update_without_a_finite_gradient_moves_nothing():
    work = batches(3)
    clean, dirty = state(small(), ema={"decay": 0.9}), state(small(), ema={"decay": 0.9})
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


def test_too_many_bad_updates_in_a_row_end_the_run():
    work = [poison(b) for b in batches(5)]
    with pytest.raises(NumericsError, match="3 updates in a row.*learning rate"):
        run(state(small()), work)


def test_float16_overflow_is_skipped_and_the_scale_falls():
    run_state = state(small(), precision=choose_precision(CPU, True, "float16"))
    run_state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    updates = run(run_state, batches(2))
    assert [u.applied for u in updates] == [False, False]
    assert run_state.scaler.get_scale() == 2.0**38
    run_state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    assert run(run_state, batches(1))[0].applied


def test_averaged_weights_follow():
    run_state = state(small(), ema={"decay": 0.5})
    start = run_state.model.head.weight.detach().clone()
    run(run_state, batches(1))
    first = run_state.model.head.weight.detach().clone()
    assert torch.equal(run_state.evaluated.head.weight, first)  # the average starts at the first update
    run(run_state, batches(1))
    second = run_state.model.head.weight.detach()
    torch.testing.assert_close(run_state.evaluated.head.weight, (first + second) / 2)
    assert not torch.equal(start, first)


def test_evaluation_leaves_training_as_it_was():
    model = small(drop_path_rate=0.5).train()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    work = [(b.images, b.targets) for b in batches(3)]
    result = evaluate(model, work, 5, choose_precision(CPU, False, "auto"), World())
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.eval()
    logits = torch.cat([model(images) for images, _ in work])
    targets = torch.cat([t for _, t in work])
    assert result.correct1 == (logits.argmax(1) == targets).sum().item() and result.count == 12
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)
    assert result.k == 5 and result.correctk == 12


def test_fault_60_top_k_shrinks_with_the_classes():
    model = small(num_classes=3)
    work = [(b.images, b.targets) for b in batches(1, classes=3)]
    assert evaluate(model, work, 3, choose_precision(CPU, False, "auto"), World()).k == 3
