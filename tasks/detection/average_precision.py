"""Average precision by COCO's definition, computed by its own tools (pycocotools)."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import ConfigError

# COCO's twelve figures: over IoU 0.5 to 0.95, at 0.5 and 0.75, by size of the objects; recall with 1, 10, 100
# detections of an image, and by size
FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
SIZES = ("small", "medium", "large")
_ALL, _MOST = 0, -1  # places of all sizes, and of the largest number of detections


@dataclass(frozen=True)
class Precision:
    """What COCO's tools compute, for "bbox" or "segm"; NaN where there is nothing to find.

    `figures`: by name, in percent; `per_class` (classes, 2): AP and AP at IoU 0.5, in percent; `curves` (2, 101): mean
    precision over the classes by recall 0 to 1, at IoU 0.5 and 0.75; `errors`: by image id and class, the numbers of
    missed objects and of false detections with a `score` above the one asked for, at IoU 0.5; `by_size`: the numbers
    of objects, missed objects and such detections of each of SIZES.
    """

    figures: Mapping[str, float]
    per_class: NDArray[np.float64]
    curves: NDArray[np.float64]
    errors: Mapping[tuple[int, int], tuple[int, int]]
    by_size: Mapping[str, tuple[int, int, int]]


def check_installed() -> None:
    """Raises: ConfigError without pycocotools."""
    try:
        import pycocotools  # noqa: F401
    except ImportError as e:
        remedy = "pip install pycocotools, or set TEST.VALIDATE to false"
        raise ConfigError("TEST.VALIDATE", "average precision needs pycocotools", remedy) from e


def average_precision(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: str, score: float = 0.3
) -> Precision:
    """Evaluates detections in COCO's format.

    Args: truth: see `truth_of`; kind: "bbox" or "segm"; score: above which a wrong detection counts in `errors`.
    """
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it reports its progress there
        known = _indexed(truth)
        evaluation = COCOeval(known, _found(known, detections, kind), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: _percent(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}
    labels = {each["id"]: label for label, each in enumerate(truth["categories"])}
    order = np.argsort([labels[category] for category in evaluation.params.catIds])  # they are sorted there
    precision = evaluation.eval["precision"][:, :, order, _ALL, _MOST]  # IoU, recall, class
    per_class = np.stack([_mean(precision, (0, 1)), _mean(precision[:1], (0, 1))], 1) * 100
    curves = _mean(precision[[0, 5]], (2,))
    errors, by_size = {}, dict.fromkeys(SIZES, (0, 0, 0))
    sizes = {tuple(own): size for own, size in zip(evaluation.params.areaRng[1:], SIZES, strict=True)}
    for each in filter(None, evaluation.evalImgs):
        objects, missed, false = _errors(each, score)
        size = sizes.get(tuple(each["aRng"]))
        if size is None:
            errors[each["image_id"], labels[each["category_id"]]] = missed, false
        else:
            total = by_size[size]
            by_size[size] = total[0] + objects, total[1] + missed, total[2] + false
    return Precision(figures, per_class, curves, errors, by_size)


def _indexed(contents: Mapping[str, Any]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = dict(contents)
    coco.createIndex()
    return coco


def _found(truth: Any, detections: Sequence[Mapping[str, Any]], kind: str) -> Any:
    """Returns the detections as COCO's tools load them; the size of a mask is its own, not that of the box."""
    if not detections:
        return _indexed({**truth.dataset, "annotations": []})
    left_out = "bbox" if kind == "segm" else "segmentation"
    return truth.loadRes([{name: value for name, value in each.items() if name != left_out} for each in detections])


def _percent(value: float) -> float:
    return 100 * float(value) if value > -1 else float("nan")


def _mean(values: NDArray[np.float64], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Returns the mean of the values that are not -1; NaN without any."""
    valid = values > -1
    count = valid.sum(axes)
    return np.where(count, np.where(valid, values, 0).sum(axes) / np.maximum(count, 1), np.nan)


def _errors(each: Mapping[str, Any], score: float) -> tuple[int, int, int]:
    """Returns the numbers of objects, missed objects and false detections of an image, a class and a size."""
    counted = ~np.asarray(each["gtIgnore"], bool)
    missed = (np.asarray(each["gtMatches"])[0] == 0) & counted
    unmatched = (np.asarray(each["dtMatches"])[0] == 0) & ~np.asarray(each["dtIgnore"], bool)[0]
    false = unmatched & (np.asarray(each["dtScores"]) > score)
    return int(counted.sum()), int(missed.sum()), int(false.sum())
