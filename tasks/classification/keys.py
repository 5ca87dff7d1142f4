"""Configuration keys of classification."""

from collections.abc import Mapping
from typing import Any

from configs.checks import above, at_least, below_one, ending, hexadecimal, one_of, pair, weighting, within
from configs.values import AUTO, FLOAT, Key, TaskKeys, list_of, optional
from utils.errors import ConfigError, did_you_mean

LOWER_IS_BETTER, NEEDS_ALL = ("loss",), ("auroc",)  # of METRICS; the latter: all probabilities at once
METRICS = ("top1", "loss", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "auroc")
_KEYS = {
    "MODEL": {"LABEL_SMOOTHING": Key(0.1, "label smoothing", below_one)},
    "DATA": {
        "SAMPLER": Key(
            "uniform",
            "new: uniform: samples once in an epoch; balanced: classes equally often; sqrt: by the root of their size",
            one_of("uniform", "balanced", "sqrt"),
        ),
    },
    "LOSS": {
        "CLASS_WEIGHTS": Key(
            "none",
            "new: none; inverse (of the frequency); effective (arXiv 1901.05555); a .csv file of class,weight",
            weighting,
        ),
        "FOCAL_GAMMA": Key(0.0, "new: focal loss (arXiv 1708.02002): exponent; 0: off", at_least(0)),
        "LOGIT_ADJUSTMENT": Key(
            0.0,
            "new: factor of the log class frequencies added to logits in training (arXiv 2007.07314); 0: off",
            at_least(0),
        ),
    },
    "DISTILLATION": {
        "KIND": Key(
            "none",
            "new: learn from a teacher's probabilities (soft) or its predicted class (hard)",
            one_of("none", "soft", "hard"),
        ),
        "TEACHER": Key("", "recipe of the teacher, as for --cfg; empty: as stored in its weights"),
        "WEIGHTS": Key("", "weights of the teacher: a file, the folder of a run, a URL, hub:NAME, hf:OWNER/NAME"),
        "SHA256": Key("", "expected digest of the file of WEIGHTS", hexadecimal, free=True),
        "ALPHA": Key(0.5, "weight of the teacher's loss; 1 - ALPHA for the labels", within(0, 1)),
        "TEMPERATURE": Key(1.0, "soft: divides the logits of both models", above(0)),
    },
    "AUG": {
        "MIXUP": Key(0.8, "alpha of mixup; 0: off", at_least(0)),
        "CUTMIX": Key(1.0, "alpha of CutMix; 0: off", at_least(0)),
        "CUTMIX_MINMAX": Key(
            None, "range of the side of the box, relative to the image", pair(1), optional(list_of(FLOAT, "[0.2, 0.8]"))
        ),
        "MIXUP_PROB": Key(1.0, "fraction of batches that are mixed", within(0, 1)),
        "MIXUP_SWITCH_PROB": Key(0.5, "fraction of mixed batches that use CutMix", within(0, 1)),
        "MIXUP_MODE": Key("batch", "one draw per batch, pair or element", one_of("batch", "pair", "elem")),
    },
    "TEST": {
        "INTERVALS": Key(True, "new: --eval: 95% confidence intervals on up to 20,000 images", free=True),
        "PROBABILITIES": Key(
            "",
            "new: --eval: .npz or .parquet file to write with the probabilities",
            ending(".npz", ".parquet"),
            free=True,
        ),
        "THRESHOLD": Key(0.0, "new: predictions below this probability are unknown; 0: off", within(0, 1), free=True),
        "REAL": Key(False, "also evaluate against the labels of ImageNet-ReaL", free=True),
        "CLASSES": Key(
            "",
            "restrict predictions to some classes: a file with one name per line; present: classes in val/; empty: all",
            free=True,
        ),
    },
}


def _check(values: Mapping[str, Any]) -> None:
    """Checks that the metric exists, and that a teacher has weights and is used. Raises: ConfigError."""
    if values["TEST.BEST"] not in (AUTO, *METRICS):
        remedy = did_you_mean(values["TEST.BEST"], METRICS)
        raise ConfigError("TEST.BEST", f"TASK classification has no metric {values['TEST.BEST']}", remedy)
    named = [key for key in ("DISTILLATION.TEACHER", "DISTILLATION.WEIGHTS") if values[key]]
    if values["DISTILLATION.KIND"] == "none":
        if named:
            raise ConfigError(named[0], "is set, but nothing is distilled", "set DISTILLATION.KIND to soft or hard")
    elif "DISTILLATION.WEIGHTS" not in named:
        raise ConfigError("DISTILLATION.WEIGHTS", "the teacher has no weights", "name a file, a run, a URL or hub:NAME")


TASK_KEYS = TaskKeys(_KEYS, check=_check)
