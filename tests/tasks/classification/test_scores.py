"""Scores equal scikit-learn's own functions; intervals and calibration behave as their definitions say."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from tasks.classification.predictions import Predictions
from tasks.classification.scores import (
    calibration_error,
    confidence_intervals,
    fitted_temperature,
    interval_line,
    macro_scores,
    per_class_scores,
    ranking_score,
)

CLASSES = 5


def predictions(count=200, scale=2.0, seed=0, classes=CLASSES):
    """Imbalanced classes of which the last has no samples; scores that prefer the right class."""
    draw = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=draw) ** 2 * (classes - 1)).long()
    logits = torch.randn(count, classes, generator=draw)
    logits[range(count), labels] += 1.0
    logits *= scale
    confidence, predicted = logits.softmax(1).max(1)
    return Predictions(torch.arange(count), labels, predicted, confidence, logits)


def test_macro_scores_are_those_of_scikit_learn():
    own = predictions()
    labels, predicted = own.labels.numpy(), own.predicted.numpy()
    found = macro_scores(own, CLASSES)
    assert found["balanced_accuracy"] == pytest.approx(100 * metrics.balanced_accuracy_score(labels, predicted))
    for name, score in (
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
        ("f1", metrics.f1_score),
    ):
        expected = score(labels, predicted, average="macro", zero_division=0)
        assert found[f"macro_{name}"] == pytest.approx(100 * expected)
    expected = metrics.f1_score(labels, predicted, average=None, labels=range(CLASSES), zero_division=0)
    np.testing.assert_allclose(per_class_scores(own, CLASSES).f1, 100 * expected)


def test_images_with_nan_logits_count_as_wrong():
    own = predictions(50)
    own.predicted[:10] = -1
    found = macro_scores(own, CLASSES)
    assert found["balanced_accuracy"] < macro_scores(predictions(50), CLASSES)["balanced_accuracy"]
    own.logits[:10] = float("nan")
    assert np.isnan(ranking_score(own)) and fitted_temperature(own) is None


def test_the_area_under_the_curve():
    own = predictions()
    labels, probabilities = own.labels.numpy(), own.logits.double().softmax(1).numpy()
    each = [metrics.roc_auc_score(labels == label, probabilities[:, label]) for label in range(CLASSES - 1)]
    assert ranking_score(own) == pytest.approx(100 * np.mean(each))
    two = predictions(classes=2, count=40)
    assert np.isnan(ranking_score(two))  # one class has samples
    two.labels[::3] = 1
    expected = metrics.roc_auc_score(two.labels.numpy(), two.logits.double().softmax(1)[:, 1].numpy())
    assert ranking_score(two) == pytest.approx(100 * expected)


@pytest.mark.parametrize("right", [True, False])
def test_a_few_samples_have_no_temperature(right):
    """The more, or less, confident, the better."""
    labels = torch.tensor([0, 1, 2])
    logits = torch.eye(3).roll(0 if right else 1, 1)
    assert (
        fitted_temperature(Predictions(torch.arange(3), labels, logits.argmax(1), logits.amax(1), 20 * logits)) is None
    )


def test_the_temperature_undoes_a_scale_and_calibrates():
    plain = fitted_temperature(predictions(2000, scale=1.0))
    scaled = predictions(2000, scale=4.0)
    assert fitted_temperature(scaled) == pytest.approx(4 * plain, rel=1e-3)
    assert calibration_error(scaled, fitted_temperature(scaled)) < calibration_error(scaled) / 3


def test_the_calibration_error_of_two_bins():
    """Four predictions at 0.9, three right; four at 0.6, two right."""
    confident = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4).log()
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 1, 1])
    own = Predictions(torch.arange(8), labels, torch.zeros(8).long(), torch.ones(8), confident)
    assert calibration_error(own) == pytest.approx(100 * (0.15 + 0.1) / 2, abs=1e-4)


def test_intervals_contain_the_score_and_shrink_with_the_samples():
    small, large = predictions(100), predictions(4000)
    widths = []
    for own in (small, large):
        found = confidence_intervals(own, CLASSES)
        top1 = 100 * float((own.labels == own.predicted).double().mean())
        values = {"top1": top1, **macro_scores(own, CLASSES)}
        assert all(low <= values[name] <= high for name, (low, high) in found.items())
        assert found == confidence_intervals(own, CLASSES)
        widths.append(found["top1"][1] - found["top1"][0])
        # the normal approximation of a binomial proportion
        assert widths[-1] == pytest.approx(2 * 1.96 * (top1 * (100 - top1) / len(own.labels)) ** 0.5, rel=0.15)
    assert widths[1] < widths[0] / 4
    line = interval_line(confidence_intervals(small, CLASSES), {"top1": "Acc@1"})
    assert line[0].startswith("95% intervals: Acc@1 ") and interval_line({}, {}) == []
