"""The objective of image classification."""

import pytest
import torch

from models.moe.routing import RoutingOptions
from tests.tools.builders import FLOAT32, batches, eval_batches, objective, small
from utils.precision import choose_precision
from utils.training.classification import classification_loss

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
TARGETS = torch.tensor([0, 0, 2, 1])


def test_training_loss_smooths_labels_but_not_mixed_targets():
    smooth = 0.1
    log_p = LOGITS.log_softmax(1)
    expected = -(0.9 * log_p[range(4), TARGETS] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(classification_loss(LOGITS, TARGETS, smooth), expected)
    soft = torch.full((4, 3), 1 / 3)
    torch.testing.assert_close(classification_loss(LOGITS, soft, smooth), -log_p.mean())
    assert classification_loss(LOGITS.bfloat16(), TARGETS, smooth).dtype == torch.float32


def test_the_loss_is_that_of_the_forward_pass_in_the_chosen_precision():
    model, (batch,) = small(), batches(1)
    half = choose_precision(torch.device("cpu"), True, "bfloat16")
    exact, rounded = (objective(precision=p).loss(model, batch)["loss"] for p in (FLOAT32, half))
    expected = torch.nn.functional.cross_entropy(model(batch.images), batch.targets, label_smoothing=0.1)
    assert exact.item() == expected.item() and rounded.dtype == torch.float32
    assert rounded.item() != exact.item() and rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_a_mixture_of_experts_adds_its_balance_loss_and_names_its_parts():
    model, (batch,) = small("swin_moe", routing=RoutingOptions(capacity_factor=0.5)), batches(1)
    own = objective()
    torch.manual_seed(0)
    losses = own.loss(model, batch)
    assert list(losses) == ["loss", "balance", "dropped", "busiest"]
    torch.manual_seed(0)
    expected = torch.nn.functional.cross_entropy(model(batch.images), batch.targets, label_smoothing=0.1)
    assert losses["loss"].item() == pytest.approx((expected + model.balance_loss()).item())
    assert losses["balance"] > 0 and 0 < losses["dropped"] < 1 and losses["busiest"] >= 1
    evaluation = own.evaluate(model)  # without validation data there is still the picture of the epoch
    assert evaluation.metrics == {} and evaluation.each_epoch["expert_load"]().width > 100
    assert own.evaluate(model) is None  # nothing was trained since


def test_evaluation_names_its_metrics():
    model, work = small(), eval_batches(batches(3))
    evaluation = objective(val=work).evaluate(model)
    assert list(evaluation.metrics) == ["top1", "topk", "loss", "k", "correct1", "correctk", "count"]
    assert evaluation.scalars.keys() == {"loss", "top1", "top5"} and "(" in evaluation.line
    assert objective(val=None).evaluate(model) is None
