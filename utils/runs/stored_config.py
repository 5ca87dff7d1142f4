"""The recipe stored in the weights that are evaluated, for commands without --cfg."""

from collections.abc import Iterable
from typing import Any

from yacs.config import CfgNode

from configs.loading import config_of_weights
from utils.checkpoints.downloads import read_weights
from utils.distributed.world import World

# they belong to the training run or its machine, not to the model
RESET = {
    "DEVICE": "auto",
    "MODEL.ATTENTION": "auto",
    "MODEL.PRETRAINED": "",
    "MODEL.RESUME": "",
    "MODEL.SHA256": "",
    "TEST.DETECTIONS": "",
    "TEST.PER_CLASS": "",
    "TEST.PROBABILITIES": "",
    "TEST.RESULTS": "",
}


def stored_config(cfg: CfgNode, overrides: Iterable[tuple[str, Any, str]], world: World) -> CfgNode:
    """Returns the configuration stored in the first file of --resume or --pretrained, the same on every rank.

    Args: cfg: the command line alone, which names the file; overrides: its keys.
    Raises: CheckpointError; ConfigError if the file does not store its configuration.
    """
    name = (cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED).split(",")[0].strip()
    stored = world.main_only(lambda: read_weights(name, cfg.MODEL.SHA256).get("config"))
    reset = [(key, value, "default") for key, value in RESET.items()]
    return config_of_weights({"config": stored}, name, overrides=[*reset, *overrides])
