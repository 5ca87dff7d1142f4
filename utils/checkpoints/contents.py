"""Names and types of the metadata in a checkpoint, checked once, when a file is read."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.errors import CheckpointError
from utils.preprocessing import CROPS

Check = Callable[[Any], bool]
# names that identify a file of this program: a training checkpoint, or weights extracted from one
_OURS = ({"model", "optimizer", "counters", "means"}, {"preprocessing", "versions"})
TUNED = ("calibration", "thresholds")  # on validation data, for predictions with the same weights
CLASSES = ("class_names", "category_ids", "class_colours", "label_values")  # fields that describe the classes
JUDGED = ("data_counts", "per_class")  # images of each class, and results on the validation data
MAX_DEPTH, MAX_VALUES = 100, 2_000_000


def parse_notes(text: str, path: Path) -> dict[str, Any]:
    """Parses the JSON object in which this program stores metadata in .safetensors, .onnx and .pt2 files.

    Returns: the metadata, empty for any other text, which another program wrote.
    Raises: CheckpointError if a value is malformed.
    """
    try:
        notes = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return checked(notes, path, ours=True) if isinstance(notes, dict) else {}


def checked(contents: dict[str, Any], path: Path, ours: bool = False) -> dict[str, Any]:
    """Returns the contents of a file, with metadata of the expected types.

    Other programs may use the same keys for something else: in their files, metadata of an unexpected type is dropped.
    Args: ours: whether this program wrote the file; if False, inferred from its keys.
    Raises: CheckpointError for unbounded nesting, and for metadata of the wrong type written by this program.
    """
    _check_nesting(contents, path)
    wrong = [name for name, fits in _FIELDS.items() if name in contents and not fits(contents[name])]
    if wrong and (ours or any(contents.keys() >= names for names in _OURS)):
        raise CheckpointError(str(path), f"the file is corrupt: {wrong[0]} is malformed", "use another checkpoint")
    return {name: value for name, value in contents.items() if name not in wrong}


def _check_nesting(contents: dict[str, Any], path: Path) -> None:
    level: list[Any] = [contents]
    for _ in range(MAX_DEPTH):
        level = list(islice((inner for value in level for inner in _children(value)), MAX_VALUES + 1))
        if len(level) > MAX_VALUES:
            break
        if not level:
            return
    raise CheckpointError(str(path), "its contents are nested too deeply, or contain themselves", "do not trust it")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_none(fits: Check) -> Check:
    return lambda value: value is None or fits(value)


def _list_of(fits: Check, length: int = 0) -> Check:
    return lambda value: (
        isinstance(value, list | tuple) and all(map(fits, value)) and (not length or len(value) == length)
    )


def _dict_of(fits: Check, *, keys: type = str, **required: Check) -> Check:
    """Checks that a mapping has the `required` values, that `fits` holds for all others, and the type of its keys."""

    def matches(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and required.keys() <= value.keys()
            and all(isinstance(name, keys) for name in value)
            and all(required.get(name, fits)(inner) for name, inner in value.items())
        )

    return matches


def _is_anything(_: Any) -> bool:
    return True


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) or _is_number(value) or value is None


def _are_numbers(value: Any) -> bool:
    return _list_of(_is_number)(value) and len(value) > 0


def _is_crop(value: Any) -> bool:
    return _is_number(value) and CROPS[0] <= value <= CROPS[1]


def _is_level(value: Any) -> bool:
    return _is_count(value) and value < 256


def _are_label_values(value: Any) -> bool:
    return _dict_of(_is_level)(value) and all(map(_INTEGER.fullmatch, value))


def _is_epoch(value: Any) -> bool:
    return _is_count(value) or value == -1


def _are_counters(value: Any) -> bool:
    return _dict_of(_or_none(_is_number))(value) and all(_is_count(value[name]) for name in _COUNTS if name in value)


_INTEGER = re.compile(r"-?\d{1,9}", re.ASCII)
are_colours = _list_of(_list_of(_is_level, 3))
are_names = _list_of(_is_text)
_COUNTS = ("epoch", "step", "update", "skipped", "skipped_in_row", "samples")
_COUNTS_OF = _list_of(_is_count)
_GROUP = _dict_of(_is_anything, params=_list_of(_is_count))
_FIELDS: dict[str, Check] = {
    "config": lambda value: isinstance(value, str | Mapping),  # a mapping in files of the original
    "optimizer_name": _is_text,
    "data_fingerprint": _is_text,
    "global_batch": _is_count,
    "class_names": are_names,
    "class_colours": are_colours,
    "label_values": _are_label_values,
    "category_ids": _list_of(_is_count),
    "data_counts": _list_of(_is_count),
    "held_out": _list_of(_is_text),
    "calibration": _dict_of(_is_anything, temperature=lambda value: _is_finite(value) and value > 0),
    "thresholds": _list_of(_is_finite),
    "per_class": _dict_of(_is_anything, samples=_COUNTS_OF, correct=_COUNTS_OF, predicted=_COUNTS_OF),
    "pretrained_windows": _or_none(_list_of(_is_count)),
    "versions": _dict_of(_is_text),
    "preprocessing": _or_none(_dict_of(_is_text, mean=_are_numbers, std=_are_numbers, crop_pct=_is_crop)),
    "counters": _are_counters,
    "best": _dict_of(_or_none(_is_number), epoch=_is_epoch),
    "means": _dict_of(_list_of(_is_number, 2)),
    "scaler": _or_none(_dict_of(_is_anything)),
    "optimizer": _dict_of(_is_anything, state=_dict_of(_dict_of(_is_moment), keys=int), param_groups=_list_of(_GROUP)),
    "forms": _dict_of(_is_text),
    "epoch": _is_finite,
    "batch": _is_count,  # of an exported model, 0 for any
    "outputs": are_names,  # of an exported model
}
