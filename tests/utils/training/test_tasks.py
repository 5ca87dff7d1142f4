"""A configuration asks for an objective by its task."""

from types import SimpleNamespace

import pytest

from tests.builders import FLOAT32, configured
from utils.distributed import World
from utils.training.classification import Classification
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


def test_every_task_of_the_schema_has_one():
    from configs.schema import KEYS

    assert KEYS["TASK"].check is not None and all(KEYS["TASK"].check(name) is None for name in TASKS)
