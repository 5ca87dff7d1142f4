"""Configuration keys of SimMIM pre-training."""

from collections.abc import Mapping
from typing import Any

from configs.checks import at_least, odd, portion
from configs.values import Key, TaskKeys
from utils.errors import ConfigError

_KEYS = {
    "DATA": {
        "MASK_PATCH_SIZE": Key(32, "SimMIM: side of a masked square, pixels", at_least(1)),
        "MASK_RATIO": Key(0.6, "SimMIM: fraction of squares to mask", portion),
    },
    "MODEL": {
        "SIMMIM": {
            "NORM_TARGET": {
                "ENABLE": Key(False, "normalise the target by its neighbourhood"),
                "PATCH_SIZE": Key(47, "side of the neighbourhood, pixels; odd", odd),
            },
            "DECAY_POSITION_BIAS": Key(True, "new: apply weight decay to position biases, as the original does"),
        },
    },
}

# hard-coded in the original's scripts; overridden by files and options
_DEFAULTS = {
    "DATA.INTERPOLATION": "bilinear",
    "AUG.SCALE": [0.67, 1.0],
    "AUG.AUTO_AUGMENT": "none",
    "AUG.COLOR_JITTER": 0.0,
    "AUG.REPROB": 0.0,
    "AUG.MIXUP": 0.0,
    "AUG.CUTMIX": 0.0,
}


def _check(values: Mapping[str, Any]) -> None:
    """Rejects keys without meaning in pre-training. Raises: ConfigError."""
    for key, allowed in (
        ("TEST.IMG_SIZE", (0, values["DATA.IMG_SIZE"])),
        ("TRAIN.FREEZE", ("none",)),
        ("TRAIN.LAYER_DECAY", (1.0,)),
        ("TEST.CLASSES", ("",)),
        ("TEST.REAL", (False,)),
        ("TEST.PER_CLASS", ("",)),
        ("TEST.RESULTS", ("",)),
        ("DISTILLATION.KIND", ("none",)),
    ):
        if values[key] not in allowed:
            raise ConfigError(key, f"{values[key]} does not apply to SimMIM pre-training", f"set it to {allowed[0]!r}")
    if values["MODEL.TYPE"] not in ("swin", "swinv2"):
        raise ConfigError(
            "MODEL.TYPE", f"SimMIM pre-trains V1 and V2, not {values['MODEL.TYPE']}", "set it to swin or swinv2"
        )


TASK_KEYS = TaskKeys(_KEYS, _DEFAULTS, name_prefix="simmim_pretrain", selects=True, check=_check)
