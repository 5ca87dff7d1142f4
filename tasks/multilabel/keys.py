"""Configuration keys of multi-label classification."""

from collections.abc import Mapping
from typing import Any

from configs.checks import at_least, below_one, one_of
from configs.values import AUTO, Key, TaskKeys
from utils.errors import ConfigError

METRICS = ("map", "f1_macro", "f1_micro", "exact_match", "loss")
_KEYS = {
    "LOSS": {
        "MULTILABEL": Key(
            "bce", "multilabel: binary cross-entropy; asymmetric (arXiv 2009.14119)", one_of("bce", "asymmetric")
        ),
        "GAMMA_NEG": Key(4.0, "asymmetric: focusing exponent of negative labels", at_least(0)),
        "GAMMA_POS": Key(1.0, "asymmetric: focusing exponent of positive labels", at_least(0)),
        "CLIP": Key(0.05, "asymmetric: probability by which negative labels are shifted", below_one),
        "POSITIVE_WEIGHTS": Key(
            0.0,
            "multilabel: weight positive labels by negatives / positives of a class, at most this; 0: off",
            at_least(0),
        ),
    },
}


def _check(values: Mapping[str, Any]) -> None:
    """Rejects keys that need one label per image. Raises: ConfigError."""
    for key, wanted in (
        ("DISTILLATION.KIND", "none"),
        ("LOSS.CLASS_WEIGHTS", "none"),
        ("LOSS.FOCAL_GAMMA", 0),
        ("LOSS.LOGIT_ADJUSTMENT", 0),
        ("TEST.CLASSES", ""),
        ("TEST.REAL", False),
    ):
        if values[key] != wanted:
            raise ConfigError(
                key, "does not support several labels per image (TASK multilabel)", f"set it to {wanted!r}"
            )
    if values["TEST.BEST"] not in (AUTO, *METRICS):
        raise ConfigError(
            "TEST.BEST", f"TASK multilabel has no metric {values['TEST.BEST']}", f"use {', '.join(METRICS)}"
        )


TASK_KEYS = TaskKeys(_KEYS, defaults={"MODEL.LABEL_SMOOTHING": 0.0}, check=_check)
