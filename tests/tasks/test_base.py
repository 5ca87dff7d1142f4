"""Training data, shared by all tasks."""

import pytest

from tasks.base import TrainingData
from tasks.registry import new_task
from tests.tools.builders import classes_of, configured, plan, shape, small
from utils.distributed.world import World

PLAIN = {"DATA__IMG_SIZE": 32, "DATA__BATCH_SIZE": 4, "DATA__NUM_WORKERS": 0, "AUG__MIXUP": 0.0, "AUG__CUTMIX": 0.0}


def training(photos, splits=("train", "val")):
    task = new_task(configured(DATA__DATA_PATH=str(photos), **PLAIN), World())
    data = task.open_data(splits)
    return TrainingData(task, data, plan(shape(len(data.train), 4)))


@pytest.fixture(scope="module")
def model():
    return small(num_classes=3)


def test_an_epoch_may_start_within(photos):
    data = training(photos)
    whole, rest = ([batch.samples for batch in data.epoch(1, first)] for first in (0, 2))
    assert rest == whole[2:] and len(rest) > 0
    assert data.name_of(whole[0][0]).startswith(str(photos / "train"))


def test_an_evaluation_may_be_limited(photos, model):
    data = training(photos)
    assert data.best is not None and data.best.metric == "top1"
    assert data.evaluate(model).samples == 15 and data.evaluate(model, limit=2).samples == 8


def test_without_validation_data_nothing_is_evaluated_and_nothing_is_the_best(photos, model):
    data = training(photos, ("train",))
    assert data.val is None and data.best is None and data.evaluate(model) is None


def test_a_rank_without_validation_samples_shows_none_of_training(photos):
    task = new_task(configured(DATA__DATA_PATH=str(photos), **PLAIN), World())
    data = task.open_data()
    task.world = World(20, 21)
    data = TrainingData(task, data, plan(shape(len(data.train), 1, world_size=21)))
    assert len(data.val) == 0 and data._shown is data.val


def test_an_evaluation_builds_no_augmentation():
    """Whose options need not fit the channels of a file that is evaluated."""
    cfg = {"MODEL__SWIN__IN_CHANS": 4, "MODEL__RESUME": "x", **PLAIN}
    pipeline = new_task(configured(EVAL_MODE=True, **cfg), World()).pipeline(classes_of(3))
    assert pipeline.train is None and pipeline.val is not None


def test_a_prediction_reads_in_a_way_of_its_own(photos, own_photos):
    task = new_task(configured(DATA__DATA_PATH=str(own_photos), **PLAIN), World())
    next((own_photos / "val").rglob("*.jpg")).write_bytes(b"")
    data = task.open_data(("val",))
    loader = task.loader(data.val, data.info, on_bad="skip_any")
    assert sum(len(batch.samples) for batch in loader) == 14
