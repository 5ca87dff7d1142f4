"""Keys of classification: what a teacher needs."""

import pytest

from tasks.classification.keys import TASK_KEYS
from tests.tools.builders import configured
from tests.tools.errors import raises
from utils.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "subject"),
    [
        ({"DISTILLATION__KIND": "soft"}, "DISTILLATION.WEIGHTS"),
        ({"DISTILLATION__WEIGHTS": "a.pth"}, "DISTILLATION.WEIGHTS"),
        ({"DISTILLATION__TEACHER": "swin_base"}, "DISTILLATION.TEACHER"),
    ],
)
def test_a_teacher_has_weights_and_is_used(given, subject):
    with raises(ConfigError, subject):
        configured(**given)
    assert configured(DISTILLATION__KIND="hard", DISTILLATION__WEIGHTS="a.pth").DISTILLATION.ALPHA == 0.5
    assert not TASK_KEYS.selects
