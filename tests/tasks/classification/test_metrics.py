"""Sums over samples, divided once."""

import pytest
import torch
from timm.data import ImageNetInfo
from torch import nn

from models.weights.class_maps import real_labels
from tasks.classification.labels import ClassInfo
from tasks.classification.metrics import ClassificationEvaluator, accuracy_of, accuracy_sums, real_line, restrict
from tasks.classification.predictions import Predictions
from tasks.classification.task import Outputs
from tests.tools.builders import HeldOut, batches, evaluation_of, objective, small
from tests.tools.errors import raises
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import ConfigError, DataError

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
TARGETS = torch.tensor([0, 0, 2, 1])


def test_counts_by_hand():
    result = accuracy_of(accuracy_sums(LOGITS, TARGETS, k=2), k=2)
    assert (result.correct1, result.correctk, result.count) == (1, 2, 4)
    assert (result.top1, result.topk) == (25.0, 50.0)
    expected = torch.nn.functional.cross_entropy(LOGITS, TARGETS).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.line(6) == f"Acc@1 25.000 Acc@2 50.000 loss {expected:.4f} (1 of 4)"
    assert result.line(2) == f"Acc@1 25.000 loss {expected:.4f} (1 of 4)"


def test_sums_do_not_depend_on_how_samples_are_batched():
    whole = accuracy_sums(LOGITS, TARGETS, 2)
    parts = accuracy_sums(LOGITS[:1], TARGETS[:1], 2) + accuracy_sums(LOGITS[1:], TARGETS[1:], 2)
    torch.testing.assert_close(whole, parts)
    assert whole.dtype == torch.float64


def test_no_samples_are_rejected():
    with raises(DataError, "DATA.DATA_PATH"):
        accuracy_of(torch.zeros(4), 5)


def test_evaluation_leaves_training_as_it_was():
    model = small(drop_path_rate=0.5).train()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    work = batches(3)
    metrics = evaluation_of(objective(), model, work).metrics
    assert model.training and torch.equal(before, torch.get_rng_state())
    model.eval()
    logits = torch.cat([model(batch.images) for batch in work])
    targets = torch.cat([batch.targets for batch in work])
    assert metrics["correct1"] == (logits.argmax(1) == targets).sum().item() and metrics["count"] == 12
    assert metrics["loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)
    assert "topk" not in metrics


def test_fault_60_there_is_no_top_5_of_few_classes():
    evaluator = ClassificationEvaluator(HeldOut([]), ["a", "b", "c"])
    evaluator.update(Outputs(LOGITS, {}), Batch(LOGITS, TARGETS, tuple(range(4))))
    evaluation = evaluator.compute(World())
    assert not evaluation.metrics.keys() & {"topk", "k", "top3"} and "Acc@3" not in evaluation.line
    assert evaluation.tables["results"].head[:3] == ["top1", "loss", "balanced_accuracy"]
    assert evaluation.tables["results"].rows[0][:2] == ["25.000", f"{evaluation.metrics['loss']:.5f}"]


def test_only_allowed_classes_keep_their_logits():
    logits = torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 4.0]])
    assert restrict(logits, [0, 2]).tolist() == [[3.0, float("-inf"), 1.0], [0.0, float("-inf"), 4.0]]
    assert logits[0, 1] == 2.0  # a copy


def test_predictions_can_be_restricted_to_some_classes():
    evaluator = ClassificationEvaluator(HeldOut([]), ["a", "b", "c"], allowed=[1, 0])
    evaluator.update(Outputs(LOGITS, {}), Batch(LOGITS, TARGETS, tuple(range(4))))
    metrics = evaluator.compute(World()).metrics
    assert metrics["correct1"] == 1 and metrics.keys() & {"auroc", "topk"} == set()


def file_name(i):
    return f"val/x/ILSVRC2012_val_{i + 1:08d}.JPEG"


def test_real_labels_allow_several_answers_and_skip_images_without_any():
    predictions = Predictions(*map(torch.tensor, ([0, 1, 2, 4], [0, 0, 1, 3], [0, 3, 1, 0], [0.5] * 4)))
    real = {file_name(0).split("/")[-1]: [1, 0], file_name(1).split("/")[-1]: [], file_name(2).split("/")[-1]: [2]}
    assert real_line(predictions, file_name, real) == "ReaL Acc@1 50.000 (1 of 2)"
    assert "no file is" in real_line(predictions, lambda i: "photo.jpg", real)


def test_real_labels_follow_the_class_names_of_the_head():
    synsets = ImageNetInfo("imagenet-1k").label_names()
    whole = real_labels(synsets)
    assert len(whole) == 50_000 and sum(not labels for labels in whole.values()) == 3_163  # arXiv 2006.07159
    some = real_labels(list(reversed(synsets[:10])))
    for name in list(whole)[:2000]:
        assert some[name] == [9 - label for label in whole[name] if label < 10]
    with raises(ConfigError, "TEST.REAL", "class_0"):
        real_labels(["class_0", *synsets[1:10]])


def test_images_with_nan_logits_count_as_wrong_and_are_reported(caplog):
    """Whatever label topk would give them."""
    logits, targets = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])
    logits[3, 1] = float("nan")
    assert accuracy_sums(logits, targets, 3)[[0, 1, 3]].tolist() == [3, 3, 4]
    evaluator = ClassificationEvaluator(HeldOut([]), ["a", "b", "c"])
    evaluator.update(Outputs(logits, {}), Batch(logits, targets, tuple(range(4))))
    evaluation = evaluator.compute(World())
    assert evaluation.metrics["top1"] == 75 and "1 of 4 images are NaN" in caplog.text
    per_class = evaluation.tables["per_class"]
    first = dict(zip(per_class.head, per_class.rows[0], strict=True))
    assert (first["samples"], first["correct"]) == (2, 1)


def test_a_prediction_of_nan_has_no_class():
    task, info = objective(), ClassInfo(class_names=("a", "b"))
    outputs = Outputs(torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]), {})
    first, second = task.predictions(outputs, Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2), (0, 1)), info, 2)
    assert first.record == {"classes": ["", ""], "probabilities": [None, None]}
    assert second.record["classes"] == ["b", "a"]
