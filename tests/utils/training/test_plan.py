"""What follows from configuration, ranks and data."""

import pytest

from configs.loading import load_config
from tests.conftest import ROOT
from tests.tools.errors import raises
from utils.errors import ConfigError
from utils.training.plan import RunPlan, epochs_for


def plan(world=8, train_size=1_281_167, **keys):
    overrides = [(k.replace("__", "."), v, "test") for k, v in keys.items()]
    return RunPlan.from_config(load_config(ROOT / "configs/swin_tiny.yaml", overrides), world, train_size)


def test_the_recipe_of_the_paper():
    recipe = plan()
    assert (recipe.updates_per_epoch, recipe.total_updates, recipe.warmup_updates) == (1251, 375_300, 25_020)
    lines = recipe.describe()
    assert lines[0] == "global batch 1024 = 128 images x 8 ranks x 1 micro-batch"
    assert lines[1].startswith("learning rate 0.001 = 0.0005 x 1024 / 512, cosine after 25,020 updates of warm-up")


def test_an_absolute_rate_scales_the_others_and_ignores_the_batch():
    for world in (1, 8):
        recipe = plan(world, TRAIN__LR=2e-3)
        assert (recipe.peak_lr, recipe.warmup_lr, recipe.min_lr) == pytest.approx((2e-3, 2e-6, 2e-5), rel=1e-12)
    assert "learning rate 0.002 = TRAIN.LR, cosine" in recipe.describe()[1]
    assert (recipe.lr_key, recipe.base_lr) == ("TRAIN.LR", 2e-3)


@pytest.mark.parametrize(
    ("world", "limit", "split"), [(1, 128, (128, 8)), (8, 128, (128, 1)), (64, 128, (16, 1)), (2, 100, (64, 8))]
)
def test_a_global_batch_sets_the_accumulation(world, limit, split):
    recipe = plan(world, DATA__BATCH_SIZE=limit, TRAIN__GLOBAL_BATCH_SIZE=1024)
    assert (recipe.shape.batch_size, recipe.shape.accumulation) == split and recipe.peak_lr == 1e-3


def test_what_cannot_be_planned_is_refused():
    with raises(ConfigError, "TRAIN.GLOBAL_BATCH_SIZE", 1024, "3 ranks"):
        plan(3, TRAIN__GLOBAL_BATCH_SIZE=1024)
    with raises(ConfigError, "DATA.DATA_PATH", "3 training samples", "4 ranks"):
        plan(4, 3)
    with raises(ConfigError, "TRAIN.START_EPOCH", 2502):  # 1,251 updates an epoch
        plan(TRAIN__UPDATES=2502, TRAIN__WARMUP_EPOCHS=1, TRAIN__START_EPOCH=2)
    with raises(ConfigError, "TRAIN.WARMUP_EPOCHS", "25020 updates", "only 2502"):
        plan(TRAIN__UPDATES=2502)


@pytest.mark.parametrize(
    ("size", "batch", "updates"),
    [(1_281_167, 1024, 1251), (40, 8, 5), (41, 8, 5), (42, 8, 6), (3, 8, 1), (1, 8, 1), (7, 3, 3)],
)
def test_updates_of_an_epoch(size, batch, updates):
    """A remainder of at least a quarter of a global batch is an update of its own; a smaller one is dropped."""
    assert plan(1, size, DATA__BATCH_SIZE=batch).updates_per_epoch == updates


@pytest.mark.parametrize(("world", "batch", "accumulation"), [(1, 16, 1), (2, 8, 1), (1, 4, 4), (4, 2, 2)])
def test_fault_32_the_schedule_depends_on_the_global_batch_alone(world, batch, accumulation):
    recipe = plan(world, 52, DATA__BATCH_SIZE=batch, TRAIN__ACCUMULATION_STEPS=accumulation)
    assert (recipe.shape.global_batch, recipe.updates_per_epoch) == (16, 4)
    assert recipe.peak_lr == 5e-4 * 16 / 512
    assert [recipe.shape.update_size(i) for i in range(4)] == [16, 16, 16, 4]


def test_the_epochs_may_follow_from_the_number_of_samples():
    assert [epochs_for(size) for size in (1, 250, 444, 1000, 4000, 10_000, 100_000, 10**6)] == [
        200,
        200,
        150,
        100,
        50,
        32,
        10,
        10,
    ]
    options = [("TRAIN.EPOCHS", "auto", "test"), ("DATA.BATCH_SIZE", 100, "test")]
    assert RunPlan.from_config(load_config("swin_tiny", options), 1, 4000).epochs == 50
