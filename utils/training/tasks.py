"""Which objective a configuration asks for."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from utils.distributed.world import World
from utils.precision import Precision
from utils.training.classification import Classification
from utils.training.distillation import Distillation, DistillationOptions
from utils.training.objective import Objective
from utils.training.reconstruction import Reconstruction

# maps the class names of the data to the teacher, which maps images to logits
OpenTeacher = Callable[[Sequence[str]], Callable[[Tensor], Tensor]]

TASKS: dict[str, Callable[..., Objective]] = {
    "classification": Classification.from_config,
    "simmim": Reconstruction.from_config,
}


def new_objective(
    cfg: CfgNode, val: Any, gallery: Any, precision: Precision, world: World, teacher: OpenTeacher | None = None
) -> Objective:
    """Returns the objective of TASK, with a teacher if DISTILLATION has one.

    Args: val: loader of this rank's validation shard, None to train without; gallery: a loader for class names and for
    images to show, which is `val` if there is one; teacher: opens the teacher for the classes of the data.
    """
    objective = TASKS[cfg.TASK](cfg, val, gallery, precision, world)
    if cfg.DISTILLATION.KIND == "none":
        return objective
    assert isinstance(objective, Classification) and teacher is not None
    return Distillation(DistillationOptions.from_config(cfg), objective, teacher(gallery.class_names), precision)
