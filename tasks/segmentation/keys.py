"""Configuration keys of semantic segmentation."""

from collections.abc import Mapping
from typing import Any

from configs.checks import at_least, below_one, one_of, within
from configs.values import AUTO, BOOL, FLOAT, INT, Key, TaskKeys, auto_or, list_of
from utils.errors import ConfigError

METRICS = ("miou", "macc", "aacc")


def _two_sides(value: list[int]) -> str | None:
    return None if len(value) == 2 and value[0] >= value[1] > 0 else "must be the long and the short side, in pixels"


def _range(value: list[float]) -> str | None:
    return None if len(value) == 2 and 0 < value[0] <= value[1] else "must be two numbers above 0, the smaller first"


def _scales(value: list[float]) -> str | None:
    return None if value and all(each > 0 for each in value) else "must be a list of numbers above 0"


_KEYS = {
    "DATA": {
        "CLASSES": Key(
            "",
            "segmentation: file with a class per line: name, or name red green blue; empty: classes.txt of the dataset",
        ),
        "REDUCE_ZERO_LABEL": Key(
            AUTO,
            "segmentation: true: label 0 is ignored, others are classes + 1; auto: as in ADE20K's layout",
            kind=auto_or(BOOL),
        ),
        "IGNORE_LABEL": Key(
            AUTO, "segmentation: value to ignore in label maps, besides 255; auto: none", kind=auto_or(INT)
        ),
    },
    "MODEL": {
        "UPERNET": {
            "CHANNELS": Key(512, "channels of the UPerNet head", at_least(1)),
            "AUXILIARY_CHANNELS": Key(256, "channels of the auxiliary head", at_least(1)),
            "DROPOUT": Key(0.1, "dropout before the classifiers of both heads", below_one),
        },
    },
    "LOSS": {
        "AUXILIARY": Key(0.4, "segmentation: weight of the auxiliary head's loss", at_least(0)),
        "AVERAGE": Key(
            "all",
            "segmentation: divide the loss by all pixels, as released, or by the counted ones, without ignored ones",
            one_of("all", "counted"),
        ),
    },
    "AUG": {
        "BASE_SIZE": Key([2048, 512], "segmentation: long and short side of a resized image, at most", _two_sides),
        "RATIO_RANGE": Key([0.5, 2.0], "segmentation: range of the random factor of BASE_SIZE", _range),
        "MAX_CLASS_SHARE": Key(
            0.75, "segmentation: redraw crops of which one class covers this fraction; 1: off", within(0.01, 1)
        ),
        "PHOTOMETRIC": Key(True, "segmentation: distort brightness, contrast, saturation and hue"),
    },
    "TEST": {
        "MODE": Key(
            "whole", "segmentation: the whole image at once, or a sliding window of IMG_SIZE", one_of("whole", "slide")
        ),
        "STRIDE": Key(0, "segmentation: step of the window, pixels; 0: two thirds of its side", at_least(0)),
        "SCALES": Key([1.0], "segmentation: factors of BASE_SIZE to average over", _scales, list_of(FLOAT, "[0.5, 1]")),
        "FLIP": Key(False, "segmentation: also average over mirrored images"),
    },
}
_DEFAULTS = {"DATA.IMG_SIZE": 512, "DATA.INTERPOLATION": "bilinear"}


def _check(values: Mapping[str, Any]) -> None:
    """Rejects keys without meaning in segmentation. Raises: ConfigError."""
    for key, allowed in (
        ("TEST.CLASSES", ("",)),
        ("TEST.REAL", (False,)),
        ("DISTILLATION.KIND", ("none",)),
        ("MODEL.TYPE", ("swin", "swinv2")),
        ("TEST.BEST", (AUTO, *METRICS)),
    ):
        if values[key] not in allowed:
            raise ConfigError(key, f"{values[key]} does not apply to segmentation", f"set it to {allowed[0]!r}")


TASK_KEYS = TaskKeys(_KEYS, _DEFAULTS, name_prefix="upernet", check=_check)
