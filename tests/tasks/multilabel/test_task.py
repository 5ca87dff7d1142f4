"""Predictions of images with several labels."""

import pytest
import torch

from configs.loading import load_config
from tasks.classification.labels import ClassInfo
from tasks.classification.task import Outputs
from tasks.multilabel.task import MultiLabel
from tests.tasks.multilabel.drawn import NAMES
from utils.batches import Batch
from utils.distributed.world import World


def task(*options, contents=None):
    given = [(options[i], options[i + 1], "test") for i in range(0, len(options), 2)]
    return MultiLabel(load_config("swin_tiny", [("TASK", "multilabel", "test"), *given]), World(), contents)


def test_predictions_are_the_labels_above_their_thresholds():
    logits, info = torch.tensor([[3.0, 1.0, -2.0, 0.1], [-3.0, -1.0, -2.0, -4.0]]), ClassInfo(class_names=NAMES)
    batch = Batch(torch.zeros(2), None, samples=(4, 7))
    first, second = task().predictions(Outputs(logits, {}), batch, info, limit=2)
    assert first.cells["labels"] == "cat; dog; fox" and first.record["classes"] == ["cat", "dog"]
    assert second.cells["labels"] == "" and second.sample == 7
    strict = task(contents={"thresholds": [0.9, 0.9, 0.1, 0.9]})
    first, _ = strict.predictions(Outputs(logits, {}), batch, info, limit=1)
    assert first.record["labels"] == ["cat", "emu"] and first.record["probabilities"] == [
        pytest.approx(0.9526, abs=1e-4)
    ]


@pytest.mark.parametrize(
    ("options", "balances"),
    [((), False), (("LOSS.MULTILABEL", "asymmetric"), True), (("LOSS.POSITIVE_WEIGHTS", 5.0), True)],
)
def test_the_remedies_for_imbalance_are_keys_of_this_task(options, balances):
    assert task(*options).balances == balances
    assert "CLASS_WEIGHTS" not in MultiLabel.remedies and "f1_macro" in MultiLabel.remedies
