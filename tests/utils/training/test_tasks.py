"""A configuration asks for an objective by its task."""

from types import SimpleNamespace

import pytest

from tests.tools.builders import FLOAT32, configured
from utils.distributed.world import World
from utils.training.classification import Classification
from utils.training.distillation import Distillation
from utils.training.reconstruction import Reconstruction
from utils.training.tasks import TASKS, new_objective


@pytest.mark.parametrize(
    ("recipe", "kind", "metric"),
    [
        ("swin_tiny.yaml", Classification, "top1"),
        ("simmim/simmim_pretrain__swin_base__img192_window6__800ep.yaml", Reconstruction, "loss"),
    ],
)
def test_the_task_decides_the_objective(recipe, kind, metric):
    loader = SimpleNamespace(class_names=["a", "b"])
    objective = new_objective(configured(recipe), loader, loader, FLOAT32, World())
    assert type(objective) is kind and objective.best.metric == metric


def test_a_teacher_is_opened_for_the_classes_of_the_data_and_only_if_there_is_one():
    opened, loader = [], SimpleNamespace(class_names=["a", "b"])
    cfg = configured(DISTILLATION__KIND="hard", DISTILLATION__WEIGHTS="FILE")
    objective = new_objective(cfg, loader, loader, FLOAT32, World(), opened.append)
    assert type(objective) is Distillation and opened == [["a", "b"]]
    assert type(new_objective(configured(), loader, loader, FLOAT32, World(), opened.append)) is Classification
    assert len(opened) == 1


def test_every_task_of_the_schema_has_one():
    from configs.schema import KEYS

    assert KEYS["TASK"].check is not None and all(KEYS["TASK"].check(name) is None for name in TASKS)
