"""The tasks by name."""

import pytest

from configs.schema import KEYS, TASKS
from tasks.classification.task import Classification
from tasks.registry import new_task, task_class
from tasks.simmim.task import Reconstruction
from tests.tools.builders import configured
from utils.distributed.world import World


@pytest.mark.parametrize(
    ("recipe", "kind", "metric"),
    [
        ("swin_tiny.yaml", Classification, "top1"),
        ("simmim/simmim_pretrain__swin_base__img192_window6__800ep.yaml", Reconstruction, "loss"),
    ],
)
def test_the_configuration_decides_the_task(recipe, kind, metric):
    task = new_task(configured(recipe), World())
    assert type(task) is kind and task.best.metric == metric


def test_every_folder_of_tasks_is_a_choice_and_has_a_class():
    assert {"classification", "simmim"} <= TASKS.keys() and KEYS["TASK"].check("segmentatoin")
    for name in TASKS:
        assert KEYS["TASK"].check(name) is None and task_class(name).name == name
