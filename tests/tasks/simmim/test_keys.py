"""Keys of SimMIM: what they imply, and what is refused."""

import pytest

from tasks.simmim.keys import TASK_KEYS
from tests.tools.builders import configured
from utils.errors import ConfigError


def test_its_defaults_are_those_of_the_originals_scripts_unless_a_key_is_set():
    cfg = configured(TASK="simmim", AUG__COLOR_JITTER=0.1)
    assert cfg.DATA.INTERPOLATION == "bilinear" and cfg.AUG.AUTO_AUGMENT == "none" and cfg.AUG.COLOR_JITTER == 0.1
    assert cfg.AUG.SCALE == [0.67, 1.0] and configured().AUG.SCALE != cfg.AUG.SCALE


@pytest.mark.parametrize(
    ("key", "value"),
    [("TRAIN.FREEZE", "all"), ("DISTILLATION.KIND", "soft"), ("TEST.REAL", True), ("MODEL.TYPE", "swin_mlp")],
)
def test_what_has_no_meaning_in_pre_training_is_refused(key, value):
    with pytest.raises(ConfigError) as caught:
        configured(TASK="simmim", **{key.replace(".", "__"): value})
    assert caught.value.subject == key and TASK_KEYS.selects
