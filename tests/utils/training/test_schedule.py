"""Learning rates: a real run's, timm's, and hand-computed ones."""

from dataclasses import replace

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from tests.tools.builders import plan as fields
from tests.utils.training.test_plan import plan
from utils.training.schedule import learning_rate

# learning rates that a public log of a Swin-T run printed: epoch, then update in the epoch -> rate in units of 1e-6
REAL_RUN = {
    3: {370: 166, 380: 166, 390: 166, 400: 167, 410: 167, 420: 168, 430: 168},
    14: {
        0: 700,
        10: 701,
        20: 701,
        30: 701,
        40: 702,
        250: 710,
        260: 711,
        270: 711,
        280: 711,
        290: 712,
        300: 712,
        770: 731,
        780: 731,
        790: 732,
        800: 732,
        810: 733,
        820: 733,
        1030: 741,
        1040: 742,
        1050: 742,
        1060: 743,
        1070: 743,
        1080: 743,
    },
}


def test_the_thirty_rates_of_a_real_run():
    recipe = plan()
    assert (recipe.updates_per_epoch, recipe.peak_lr, recipe.warmup_lr) == (1251, 1e-3, 1e-6)
    assert sum(len(rates) for rates in REAL_RUN.values()) == 30
    for epoch, rates in REAL_RUN.items():
        for update, millionths in rates.items():
            printed = f"{learning_rate(epoch * 1251 + update, recipe):.6f}"
            assert printed == f"{millionths * 1e-6:.6f}", (epoch, update)


@pytest.mark.parametrize("prefix", [True, False])
def test_cosine_equals_timm(prefix):
    epochs = {"TRAIN__EPOCHS": 10, "TRAIN__WARMUP_EPOCHS": 2}
    recipe = plan(1, 1000, DATA__BATCH_SIZE=100, TRAIN__LR_SCHEDULER__WARMUP_PREFIX=prefix, **epochs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.peak_lr)
    peer = CosineLRScheduler(
        optimizer,
        t_initial=100 - 20 * prefix,
        lr_min=recipe.min_lr,
        warmup_lr_init=recipe.warmup_lr,
        warmup_t=20,
        t_in_epochs=False,
        warmup_prefix=prefix,
        cycle_limit=1,
    )
    for update in range(100):
        peer.step_update(update)
        assert learning_rate(update, recipe) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), update
    assert learning_rate(100, recipe) == pytest.approx(recipe.min_lr)


def rates(name, epochs, **keys):
    recipe = plan(
        1, 512, DATA__BATCH_SIZE=128, TRAIN__EPOCHS=10, TRAIN__WARMUP_EPOCHS=2, TRAIN__BASE_LR=1.0,
        TRAIN__WARMUP_LR=0.0, TRAIN__LR_SCHEDULER__NAME=name, **keys,
    )  # fmt: skip
    assert recipe.peak_lr == 0.25 and recipe.updates_per_epoch == 4
    return [learning_rate(4 * epoch, recipe) for epoch in epochs]


def test_linear_falls_to_a_hundredth():
    assert rates("linear", [0, 1, 2, 6, 10]) == pytest.approx([0, 0.125, 0.25, 0.25 * (1 - 0.99 / 2), 0.0025])


@pytest.mark.parametrize("power", [1.0, 0.9, 2.0])
def test_poly_equals_torch(power):
    own = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    theirs = torch.optim.lr_scheduler.PolynomialLR(own, total_iters=16, power=power)
    recipe = fields(updates=20, warmup_updates=4, min_lr=0.0, scheduler="poly", power=power)
    for update in range(4, 21):
        assert learning_rate(update, recipe) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        own.step()
        theirs.step()
    assert learning_rate(20, replace(recipe, min_lr=1e-5)) == 1e-5  # the floor


def test_step_decays_every_so_many_epochs():
    keys = {"TRAIN__LR_SCHEDULER__DECAY_EPOCHS": 3, "TRAIN__LR_SCHEDULER__DECAY_RATE": 0.5}
    assert rates("step", [1, 2, 3, 5.75, 6, 9], **keys) == pytest.approx([0.125, 0.25, 0.125, 0.125, 0.0625, 0.03125])


def test_multistep_decays_at_its_epochs():
    keys = {"TRAIN__LR_SCHEDULER__MULTISTEPS": [8, 4]}
    assert rates("multistep", [2, 3.75, 4, 7.75, 8], **keys) == pytest.approx([0.25, 0.25, 0.025, 0.025, 0.0025])


def test_layer_decay_scales_the_whole_schedule_or_its_peak_alone():
    """SimMIM's rule: warm-up starts and the cosine ends at the same rate in every layer."""
    recipe = plan(1, 1000, DATA__BATCH_SIZE=100, TRAIN__EPOCHS=10, TRAIN__WARMUP_EPOCHS=2)
    simmim = replace(recipe, scale_peak=True)
    for update in (0, 7, 20, 33, 99):
        assert learning_rate(update, recipe, 0.25) == 0.25 * learning_rate(update, recipe)
        assert learning_rate(update, simmim) == learning_rate(update, recipe)
    assert learning_rate(0, simmim, 0.25) == recipe.warmup_lr
    assert learning_rate(10, simmim, 0.25) == pytest.approx((recipe.warmup_lr + 0.25 * recipe.peak_lr) / 2)
    assert learning_rate(20, simmim, 0.25) == 0.25 * recipe.peak_lr
    middle = recipe.min_lr + (0.25 * recipe.peak_lr - recipe.min_lr) / 2
    assert learning_rate(60, simmim, 0.25) == pytest.approx(middle)
    assert learning_rate(100, simmim, 0.25) == pytest.approx(recipe.min_lr)


def test_plateau_decays_when_it_is_told_to():
    own = fields(warmup_updates=10, scheduler="plateau", decay_rate=0.5, min_lr=1e-5, peak_lr=1e-3, warmup_lr=0.0)
    assert learning_rate(5, own, decays=2) == pytest.approx(5e-4)  # the warm-up is not decayed
    rates = [learning_rate(update, own, decays=decays) for update, decays in ((10, 0), (500, 1), (501, 3), (502, 20))]
    assert rates == pytest.approx([1e-3, 5e-4, 1.25e-4, 1e-5])
    assert learning_rate(500, own, 0.1, decays=1) == pytest.approx(5e-5)


def test_the_warm_up_of_the_released_segmenters_is_a_factor_of_their_polynomial():
    """lr(t) = peak * (1 - t / T) * (1 - (1 - t / W) * (1 - r)), with W 1500, T 160,000 and r a millionth."""
    own = replace(
        plan(), updates=160_000, warmup_updates=1500, warmup_lr=6e-11, peak_lr=6e-5, min_lr=0.0, scheduler="poly",
        warmup_prefix=False,
    )  # fmt: skip
    assert learning_rate(0, own) == pytest.approx(6e-11)
    for t in (1, 750, 1499):
        expected = 6e-5 * (1 - t / 160_000) * (1 - (1 - t / 1500) * (1 - 1e-6))
        assert learning_rate(t, own) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(1500, own) == pytest.approx(6e-5 * (1 - 1500 / 160_000))
    assert learning_rate(80_000, own) == pytest.approx(3e-5) and learning_rate(160_000, own) == 0
