"""Metrics of a classifier beyond accuracy, by scikit-learn: per class, ranking, calibration, confidence intervals.

All are in percent, computed from the predictions for the whole dataset, and equal scikit-learn's.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.classification.predictions import Predictions

BINS = 15  # of the calibration error
HOTTEST = 10.0  # temperature
RESAMPLES, LARGEST = 1000, 20_000  # of the bootstrap; samples up to which it is computed
INTERVALS = ("top1", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class PerClass:
    """Precision, recall and F1 of each class in percent, float64 (classes,); 0 where undefined."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def per_class_scores(predictions: Predictions, classes: int) -> PerClass:
    """Returns the scores of every class."""
    from sklearn.metrics import precision_recall_fscore_support

    labels, predicted = predictions.labels.numpy(), predictions.predicted.numpy()
    found = precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    return PerClass(*(100 * np.asarray(values) for values in found[:3]))


def macro_scores(predictions: Predictions, classes: int) -> dict[str, float]:
    """Returns balanced accuracy (the mean recall of the classes with samples) and macro precision, recall and F1 (means
    over the classes with samples or predictions)."""
    own = per_class_scores(predictions, classes)
    present = np.bincount(predictions.labels.numpy(), minlength=classes) > 0
    valid = predictions.predicted[predictions.predicted >= 0].numpy()
    either = present | (np.bincount(valid, minlength=classes) > 0)
    return {
        "balanced_accuracy": float(own.recall[present].mean()),
        "macro_precision": float(own.precision[either].mean()),
        "macro_recall": float(own.recall[either].mean()),
        "macro_f1": float(own.f1[either].mean()),
    }


def ranking_score(predictions: Predictions) -> float:
    """Returns the area under the ROC curve: for class 1 if there are two classes, otherwise the one-vs-rest mean over
    the classes that have samples; NaN where undefined."""
    from sklearn.metrics import roc_auc_score

    if predictions.logits is None or predictions.logits.isnan().any():
        return float("nan")
    labels = predictions.labels.numpy()
    probabilities = predictions.logits.double().softmax(1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class alone
        if probabilities.shape[1] == 2:
            columns = [1]
        else:
            columns = [label for label in range(probabilities.shape[1]) if (labels == label).any()]
        areas = [roc_auc_score(labels == label, probabilities[:, label]) for label in columns if _both(labels == label)]
    return 100 * float(np.mean(areas)) if areas else float("nan")


def _both(positive: NDArray[np.bool_]) -> bool:
    return bool(positive.any()) and not bool(positive.all())


def fitted_temperature(predictions: Predictions) -> float | None:
    """Returns the temperature that minimises the cross-entropy (arXiv 1706.04599).

    Returns: None without finite logits, or without a minimum below `HOTTEST`: a few samples may all be right, so that
    no confidence is too high, or right no more often than by chance.
    """
    from scipy.optimize import minimize_scalar

    if not has_finite_logits(predictions) or (predictions.predicted == predictions.labels).all():
        return None
    assert predictions.logits is not None
    values, labels = predictions.logits.double(), predictions.labels[:, None]

    def loss(log_temperature: float) -> float:
        return -float((values / np.exp(log_temperature)).log_softmax(1).gather(1, labels).mean())

    found = np.exp(minimize_scalar(loss, bounds=(-3, np.log(HOTTEST)), method="bounded", options={"xatol": 1e-4}).x)
    return float(found) if found < 0.99 * HOTTEST else None


def has_finite_logits(predictions: Predictions) -> bool:
    """Returns whether there are any logits, all of them finite."""
    logits = predictions.logits
    return logits is not None and len(logits) > 0 and bool(torch.isfinite(logits).all())


def calibration_bins(predictions: Predictions, temperature: float = 1.0) -> NDArray[np.float64]:
    """Returns the count, mean confidence and accuracy of the samples in 15 equal bins of confidence: (3, 15)."""
    assert predictions.logits is not None
    confidence, predicted = (predictions.logits.double() / temperature).softmax(1).max(1)
    correct = (predicted == predictions.labels).double().numpy()
    places = np.minimum((confidence.numpy() * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS).astype(np.float64)
    sums = [np.bincount(places, weights, BINS) for weights in (confidence.numpy(), correct)]
    return np.stack([counts, *(each / np.maximum(counts, 1) for each in sums)])


def calibration_error(predictions: Predictions, temperature: float = 1.0) -> float:
    """Returns the expected calibration error: the mean difference between confidence and accuracy over the bins."""
    counts, confidence, accuracy = calibration_bins(predictions, temperature)
    return 100 * float((counts * np.abs(confidence - accuracy)).sum() / counts.sum())


def confidence_intervals(predictions: Predictions, classes: int, seed: int = 0) -> Mapping[str, tuple[float, float]]:
    """Returns 95% percentile bootstrap intervals of `INTERVALS`; empty for more than 20,000 samples."""
    count = len(predictions.labels)
    if not count or count > LARGEST:
        return {}
    generator = np.random.default_rng(seed)
    # NaN logits are predictions of a further class, which is never right
    pairs = (
        predictions.labels * (classes + 1) + predictions.predicted.where(predictions.predicted >= 0, classes)
    ).numpy()
    cells, inverse = np.unique(pairs, return_inverse=True)
    rows, columns = cells // (classes + 1), cells % (classes + 1)
    found: list[list[float]] = []
    for _ in range(RESAMPLES):
        often = np.bincount(inverse[generator.integers(0, count, count)], minlength=len(cells))
        found.append(_scores_of(often, rows, columns, classes))
    low, high = np.percentile(np.array(found), [2.5, 97.5], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(INTERVALS)}


def _scores_of(
    often: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64], classes: int
) -> list[float]:
    """Returns `INTERVALS` from the cells of a confusion matrix that are not empty: `often` at (rows, columns)."""
    samples = np.bincount(rows, often, classes + 1)
    predicted = np.bincount(columns, often, classes + 1)
    correct = np.bincount(rows[rows == columns], often[rows == columns], classes + 1)
    present = samples > 0
    either = present | (predicted > 0)
    either[classes] = False
    f1 = 2 * correct[either] / (samples + predicted)[either]
    return [
        100 * correct.sum() / samples.sum(),
        100 * float((correct[present] / samples[present]).mean()),
        100 * float(f1.mean()),
    ]


def interval_line(intervals: Mapping[str, tuple[float, float]], names: Mapping[str, str]) -> Sequence[str]:
    """Returns a log line of intervals, none without any. Args: names: of the metrics in the log."""
    parts = [f"{names.get(name, name)} {low:.2f} to {high:.2f}" for name, (low, high) in intervals.items()]
    return [f"95% intervals: {', '.join(parts)}"] if parts else []
