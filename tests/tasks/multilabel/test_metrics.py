"""Metrics of images with several labels equal scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from tasks.classification.task import Outputs
from tasks.multilabel.metrics import MultiLabelEvaluator, Scores, average_precisions, best_thresholds, set_scores
from tests.tasks.multilabel.drawn import CLASSES, COUNT, NAMES, drawn
from utils.batches import Batch
from utils.distributed.world import World


def scores(**options):
    logits, targets = drawn(**options)
    return Scores(torch.arange(len(logits)), logits.double(), targets.double())


def test_scores_are_those_of_scikit_learn():
    own = scores()
    truth, values = own.truth, own.probabilities
    found = average_precisions(own)
    for label in range(3):
        assert found[label] / 100 == pytest.approx(metrics.average_precision_score(truth[:, label], values[:, label]))
    assert np.isnan(found[3])  # no positive image
    predicted, three = (values >= 0.5).astype(int), slice(0, 3)
    assert set_scores(own, np.full(4, 0.5)) == {
        "f1_macro": pytest.approx(100 * metrics.f1_score(truth[:, three], predicted[:, three], average="macro")),
        "f1_micro": pytest.approx(100 * metrics.f1_score(truth, predicted, average="micro")),
        "exact_match": pytest.approx(100 * metrics.accuracy_score(truth, predicted)),
    }


def test_no_other_threshold_gives_a_higher_f1():
    own = scores(count=200)
    thresholds = best_thresholds(own)
    assert thresholds[3] == 0.5
    for label in range(3):
        truth, values = own.truth[:, label], own.probabilities[:, label]
        best = metrics.f1_score(truth, values >= thresholds[label])
        assert all(metrics.f1_score(truth, values >= other) <= best for other in np.linspace(0.01, 0.99, 99))


class Held:
    source = None


def evaluated(thresholds=None, parts=3, nan=False):
    logits, targets = drawn()
    logits[0, 0] = float("nan") if nan else logits[0, 0]
    evaluator = MultiLabelEvaluator(Held(), NAMES, thresholds)
    for rows in torch.arange(COUNT).flip(0).split(-(-COUNT // parts)):
        evaluator.update(Outputs(logits[rows], {}), Batch(logits[rows], targets[rows], tuple(rows.tolist())))
    return evaluator.compute(World())


def test_evaluation_is_the_same_for_any_batches_and_stores_thresholds():
    one, other = evaluated(parts=1), evaluated(parts=7)
    assert one.metrics == other.metrics and one.stored == other.stored and one.samples == COUNT
    assert list(one.metrics) == ["map", "f1_macro", "f1_micro", "exact_match", "loss", "f1_macro_tuned"]
    assert one.metrics["f1_macro_tuned"] >= one.metrics["f1_macro"] and len(one.stored["thresholds"]) == CLASSES
    again = evaluated(one.stored["thresholds"])
    assert again.metrics["f1_macro"] == one.metrics["f1_macro_tuned"] and "stored thresholds" in again.line
    rows = one.tables["per_class"].rows
    assert [row[0] for row in rows] == list(NAMES) and rows[3][1:3] == [0, ""]
    assert np.isnan(evaluated(nan=True).metrics["map"])
    counts = one.stored["per_class"]
    found = [200 * c / (n + p) for n, c, p in zip(*counts.values(), strict=True) if n]
    assert np.mean(found) == pytest.approx(one.metrics["f1_macro_tuned"]) and counts["samples"][3] == 0
