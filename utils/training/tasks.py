"""Which objective a configuration asks for."""

from collections.abc import Callable
from typing import Any

from yacs.config import CfgNode

from utils.distributed import World
from utils.precision import Precision
from utils.training.classification import Classification
from utils.training.objective import Objective
from utils.training.reconstruction import Reconstruction

TASKS: dict[str, Callable[..., Objective]] = {
    "classification": Classification.from_config,
    "simmim": Reconstruction.from_config,
}


def new_objective(cfg: CfgNode, val: Any, gallery: Any, precision: Precision, world: World) -> Objective:
    """Returns the objective of TASK.

    Args: val: loader of this rank's validation shard, None to train without; gallery: a loader for class names and for
    images to show, which is `val` if there is one.
    """
    return TASKS[cfg.TASK](cfg, val, gallery, precision, world)
