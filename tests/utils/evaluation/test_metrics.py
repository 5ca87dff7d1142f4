"""Sums over samples, divided once."""

import math

import pytest
import torch
from torch import nn

from tests.tools.builders import FLOAT32, batches, eval_batches, small
from utils.distributed.world import World
from utils.errors import DataError
from utils.evaluation.metrics import Mean, accuracy_of, accuracy_sums, evaluate

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
TARGETS = torch.tensor([0, 0, 2, 1])


def test_counts_by_hand():
    result = accuracy_of(accuracy_sums(LOGITS, TARGETS, k=2), k=2)
    assert (result.correct1, result.correctk, result.count) == (1, 2, 4)
    assert (result.top1, result.topk) == (25.0, 50.0)
    expected = torch.nn.functional.cross_entropy(LOGITS, TARGETS).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.line() == f"Acc@1 25.000 Acc@2 50.000 loss {expected:.4f} (1 of 4)"


def test_sums_do_not_depend_on_how_samples_are_batched():
    whole = accuracy_sums(LOGITS, TARGETS, 2)
    parts = accuracy_sums(LOGITS[:1], TARGETS[:1], 2) + accuracy_sums(LOGITS[1:], TARGETS[1:], 2)
    torch.testing.assert_close(whole, parts)
    assert whole.dtype == torch.float64


def test_no_samples_are_refused():
    with pytest.raises(DataError, match="no sample was evaluated"):
        accuracy_of(torch.zeros(4), 5)


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


def test_evaluation_leaves_training_as_it_was():
    model = small(drop_path_rate=0.5).train()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    work = eval_batches(batches(3))
    result, answers = evaluate(model, work, 5, FLOAT32, World())
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.eval()
    logits = torch.cat([model(images) for images, _ in work])
    targets = torch.cat([t for _, t in work])
    assert result.correct1 == (logits.argmax(1) == targets).sum().item() and result.count == 12
    assert torch.equal(answers.predicted, logits.argmax(1)) and torch.equal(answers.labels, targets)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)
    assert result.k == 5 and result.correctk == 12


def test_fault_60_top_k_shrinks_with_the_classes():
    model = small(num_classes=3)
    work = eval_batches(batches(1, classes=3))
    assert evaluate(model, work, 3, FLOAT32, World())[0].k == 3
