"""Configuration keys of object detection and instance segmentation."""

from collections.abc import Mapping
from typing import Any

from configs.checks import at_least, one_of, within
from configs.values import AUTO, BOOL, Key, TaskKeys, auto_or
from utils.errors import ConfigError

METRICS = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")


def _sides(value: list[int]) -> str | None:
    return None if value and min(value) > 0 else "must be a list of sides in pixels, above 0"


def _range(value: list[int]) -> str | None:
    return None if len(value) == 2 and 0 < value[0] <= value[1] else "must be two sides in pixels, the smaller first"


def _json(value: str) -> str | None:
    return None if not value or value.lower().endswith(".json") else "must be a .json file"


_KEYS = {
    "DATA": {
        "KEEP_EMPTY": Key(False, "detection: also train on images without objects"),
        "SMALLEST_SIDE": Key(32, "detection: do not train on images with a smaller side, pixels", at_least(1)),
        "ASPECT_UNIT": Key(
            2, "detection: consecutive images of one orientation, landscape or portrait, to save padding", at_least(1)
        ),
    },
    "MODEL": {
        "DETECTOR": {
            "NAME": Key("mask_rcnn", "detector", one_of("mask_rcnn", "cascade_mask_rcnn")),
            "CHANNELS": Key(256, "channels of the pyramid and the convolutions of the heads", at_least(1)),
            "WIDTH": Key(1024, "outputs of the linear layers of the box head", at_least(1)),
            "MASKS": Key(AUTO, "whether to predict masks; auto: if the training data have some", kind=auto_or(BOOL)),
        },
    },
    "AUG": {
        "SHORT_SIDES": Key(
            [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
            "detection: short sides of a training image, drawn from, pixels",
            _sides,
        ),
        "LONG_SIDE": Key(1333, "detection: long side of a resized image, at most, pixels", at_least(1)),
        "CROP_RATE": Key(0.5, "detection: probability of a crop before resizing", within(0, 1)),
        "CROP_SHORT_SIDES": Key([400, 500, 600], "detection: short sides of an image to crop, drawn from", _sides),
        "CROP_RANGE": Key([384, 600], "detection: range of the sides of a crop, pixels", _range),
    },
    "TEST": {
        "SHORT_SIDE": Key(800, "detection: short side of an image, within AUG.LONG_SIDE", at_least(1)),
        "SCORE": Key(0.05, "detection: detections have a higher score", within(0, 1)),
        "NMS": Key(0.5, "detection: IoU above which the lower of two scores of a class is suppressed", within(0, 1)),
        "MAX_DETECTIONS": Key(100, "detection: detections of an image, at most", at_least(1)),
        "DETECTIONS": Key("", "detection: .json file to write: all detections, in COCO's format", _json, free=True),
    },
}
_DEFAULTS = {"DATA.IMG_SIZE": 800, "DATA.INTERPOLATION": "bilinear"}


def _check(values: Mapping[str, Any]) -> None:
    """Rejects keys without meaning in detection. Raises: ConfigError."""
    for key, allowed in (
        ("TEST.CLASSES", ("",)),
        ("TEST.REAL", (False,)),
        ("TEST.FLIP", (False,)),
        ("DATA.SAMPLER", ("uniform",)),
        ("DATA.DATASET", ("imagenet",)),
        ("DATA.ZIP_MODE", (False,)),
        ("TEST.PROBABILITIES", ("",)),
        ("DISTILLATION.KIND", ("none",)),
        ("MODEL.TYPE", ("swin", "swinv2")),
        ("TEST.BEST", (AUTO, *METRICS)),
    ):
        if values[key] not in allowed:
            raise ConfigError(key, f"{values[key]} does not apply to detection", f"set it to {allowed[0]!r}")


TASK_KEYS = TaskKeys(_KEYS, _DEFAULTS, check=_check)
