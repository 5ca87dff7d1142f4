"""Keys of images with several labels."""

from tests.tasks.multilabel.test_task import task
from tests.tools.errors import raises
from utils.errors import ConfigError


def test_options_for_one_label_are_refused():
    for key, value in (("LOSS.FOCAL_GAMMA", 2), ("DISTILLATION.KIND", "soft"), ("TEST.REAL", True)):
        with raises(ConfigError, key, "several labels"):
            task(key, value, "DISTILLATION.WEIGHTS", "x.pth")
    with raises(ConfigError, "TEST.BEST", "map"):
        task("TEST.BEST", "top1")
    assert task().best.metric == "map" and task("TEST.BEST", "loss").best.higher_is_better is False
    assert task().cfg.MODEL.LABEL_SMOOTHING == 0
