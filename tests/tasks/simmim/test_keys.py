"""Keys of SimMIM: implied defaults, and rejected keys."""

import pytest

from tasks.simmim.keys import TASK_KEYS
from tests.tools.builders import configured
from tests.tools.errors import raises
from utils.errors import ConfigError


def test_its_defaults_are_those_of_the_originals_scripts_unless_a_key_is_set():
    cfg = configured(TASK="simmim", AUG__COLOR_JITTER=0.1)
    assert cfg.DATA.INTERPOLATION == "bilinear" and cfg.AUG.AUTO_AUGMENT == "none" and cfg.AUG.COLOR_JITTER == 0.1
    assert cfg.AUG.SCALE == [0.67, 1.0] and configured().AUG.SCALE != cfg.AUG.SCALE


@pytest.mark.parametrize(
    ("key", "value"),
    [("TRAIN.FREEZE", "all"), ("DISTILLATION.KIND", "soft"), ("TEST.REAL", True), ("MODEL.TYPE", "swin_mlp")],
)
def test_keys_without_meaning_in_pre_training_are_rejected(key, value):
    with raises(ConfigError, key, value):
        configured(TASK="simmim", **{key.replace(".", "__"): value})
    assert TASK_KEYS.selects
