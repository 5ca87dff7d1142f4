"""Sums over samples, divided once."""

import math

import pytest
import torch

from utils.errors import PlanError
from utils.evaluation.metrics import Mean, evaluation_result, evaluation_sums
from utils.training.objective import training_loss

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
TARGETS = torch.tensor([0, 0, 2, 1])


def test_counts_by_hand():
    result = evaluation_result(evaluation_sums(LOGITS, TARGETS, k=2), k=2)
    assert (result.correct1, result.correctk, result.count) == (1, 2, 4)
    assert (result.top1, result.topk) == (25.0, 50.0)
    expected = torch.nn.functional.cross_entropy(LOGITS, TARGETS).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.line() == f" * Acc@1 25.000 Acc@2 50.000 loss {expected:.4f} (1 of 4)"


def test_sums_do_not_depend_on_how_samples_are_batched():
    whole = evaluation_sums(LOGITS, TARGETS, 2)
    parts = evaluation_sums(LOGITS[:1], TARGETS[:1], 2) + evaluation_sums(LOGITS[1:], TARGETS[1:], 2)
    torch.testing.assert_close(whole, parts)
    assert whole.dtype == torch.float64


def test_no_samples_are_refused():
    with pytest.raises(PlanError, match="no sample was evaluated"):
        evaluation_result(torch.zeros(4), 5)


def test_a_mean_can_be_carried_on():
    mean = Mean()
    assert math.isnan(mean.value)
    mean.add(1.0)
    mean.add(4.0, weight=2.0)
    assert mean.value == 3.0
    again = Mean(mean.total, mean.weight)
    again.add(7.0)
    assert again.value == 4.0
    again.clear()
    assert math.isnan(again.value)


def test_training_loss_smooths_labels_but_not_mixed_targets():
    smooth = 0.1
    log_p = LOGITS.log_softmax(1)
    expected = -(0.9 * log_p[range(4), TARGETS] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(training_loss(LOGITS, TARGETS, smooth), expected)
    soft = torch.full((4, 3), 1 / 3)
    torch.testing.assert_close(training_loss(LOGITS, soft, smooth), -log_p.mean())
    assert training_loss(LOGITS.bfloat16(), TARGETS, smooth).dtype == torch.float32
