"""The loss on labels equals the formulas of the papers, and torch's where torch has it."""

import pytest
import torch
import torch.nn.functional as F

from tasks.classification.losses import ClassificationLoss, LossOptions, class_weights
from tests.tools.errors import raises
from utils.errors import ConfigError

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
TARGETS = torch.tensor([0, 0, 2, 1])
NAMES, COUNTS = ("cat", "dog", "fish"), (60, 30, 10)


def loss(*, weights=None, **options):
    return ClassificationLoss(LossOptions(**options), NAMES, COUNTS, weights)


def test_labels_are_smoothed_but_not_mixed_targets():
    log_p, smoothed = LOGITS.log_softmax(1), loss(smoothing=0.1)
    expected = -(0.9 * log_p[range(4), TARGETS] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(smoothed(LOGITS, TARGETS), expected)
    torch.testing.assert_close(smoothed(LOGITS, torch.full((4, 3), 1 / 3)), -log_p.mean())
    assert smoothed(LOGITS.bfloat16(), TARGETS).dtype == torch.float32


@pytest.mark.parametrize("rule", ["inverse", "effective"])
def test_class_weights_have_mean_1_over_the_samples(rule):
    weights = class_weights(rule, NAMES, COUNTS)
    assert (weights * torch.tensor(COUNTS)).sum() / 100 == pytest.approx(1)
    ratio = {"inverse": 6.0, "effective": (1 - 0.999**60) / (1 - 0.999**10)}[rule]
    assert float(weights[2] / weights[0]) == pytest.approx(ratio)
    found = loss(class_weights=rule)(LOGITS, TARGETS)
    terms = F.cross_entropy(LOGITS, TARGETS, weight=weights, reduction="none")
    torch.testing.assert_close(found, terms.mean())


def test_class_weights_of_a_file(tmp_path):
    file = tmp_path / "weights.csv"
    file.write_text("\ufeffclass,weight\nfish,6\ncat,1\ndog,2\n")
    weights = class_weights(str(file), NAMES, COUNTS)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2, 6]) / 1.8)
    for text, *words in (
        ("cat,1\ndog,2\n", "no weight for", "fish"),
        ("cat,1\ndog,2\nfish,1\nfihs,1\n", "unknown", "did you mean fish"),
        ("cat,1\ndog,2\nfish,-1\n", "at least 0"),
        ("cat,1\ndog,2\nfish,x\n", "cannot be read"),
        ("cat,0\ndog,0\nfish,0\n", "weight 0"),
    ):
        file.write_text(text)
        with raises(ConfigError, "LOSS.CLASS_WEIGHTS", *words):
            class_weights(str(file), NAMES, COUNTS)
    with raises(ConfigError, "LOSS.CLASS_WEIGHTS", "No such file"):
        class_weights(str(tmp_path / "gone.csv"), NAMES, COUNTS)


def test_focal_loss_weighs_by_the_error():
    log_p = LOGITS.log_softmax(1)[range(4), TARGETS]
    torch.testing.assert_close(loss(focal_gamma=2.0)(LOGITS, TARGETS), -((1 - log_p.exp()) ** 2 * log_p).mean())


def test_logit_adjustment_adds_the_log_frequencies():
    priors = (torch.tensor(COUNTS) / 100).log()
    torch.testing.assert_close(
        loss(logit_adjustment=1.5)(LOGITS, TARGETS), F.cross_entropy(LOGITS + 1.5 * priors, TARGETS)
    )


def test_sample_weights_follow_the_samples():
    weights = torch.tensor([0.5, 1.5, 2.0, 0.0])
    found = loss(weights=weights)(LOGITS, TARGETS, (3, 2, 1, 0))
    terms = F.cross_entropy(LOGITS, TARGETS, reduction="none")
    torch.testing.assert_close(found, (terms * weights.flip(0)).mean())


def test_everything_at_once_on_mixed_targets():
    soft, log_p = torch.eye(3)[TARGETS] * 0.7 + 0.1, (LOGITS + 0.5 * (torch.tensor(COUNTS) / 100).log()).log_softmax(1)
    weights = class_weights("inverse", NAMES, COUNTS)
    expected = -(soft * weights * (1 - log_p.exp()) ** 1.5 * log_p).sum(1).mean()
    own = loss(class_weights="inverse", focal_gamma=1.5, logit_adjustment=0.5, smoothing=0.3)
    torch.testing.assert_close(own(LOGITS, soft), expected)
