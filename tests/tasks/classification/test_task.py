"""The objective of image classification."""

from types import SimpleNamespace

import pytest
import torch

from models.moe.routing import RoutingOptions
from tasks.classification import pictures
from tasks.classification.labels import ClassInfo
from tasks.classification.task import Classification, Outputs
from tasks.multilabel.task import MultiLabel
from tests.tools.builders import FLOAT32, batches, configured, evaluation_of, objective, small
from utils.batches import Batch
from utils.distributed.world import World
from utils.precision import choose_precision

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])


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
    assert own.epoch_pictures(model, None)["expert_load"]().width > 100
    assert own.epoch_pictures(model, None) == {}  # nothing was trained since


@pytest.mark.parametrize("kind", [Classification, MultiLabel])
def test_mixed_samples_are_shown_with_their_shares(monkeypatch, kind):
    """The labels of classes are smoothed, sets of labels are not."""
    found = []
    monkeypatch.setattr(pictures, "sheet", lambda tiles, *_: found.extend(caption for _, caption in tiles))
    shares = torch.tensor([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0]])
    targets = shares if kind.several else 0.9 * shares + 0.1 / 3
    task = kind(configured(MODEL__LABEL_SMOOTHING=0.1, TASK=kind.name), World())
    task.show_batch(Batch(torch.zeros(2, 3, 8, 8), targets), ClassInfo(class_names=("cat", "dog", "emu")))
    assert found == ["cat 60%, dog 40%", "dog"]


def test_evaluation_names_its_metrics():
    evaluation = evaluation_of(objective(), small(), batches(3))
    scores = ["balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "auroc", "ece"]
    assert list(evaluation.metrics) == ["top1", "loss", "correct1", "count", *scores]
    assert list(evaluation.scalars) == ["loss", "top1", *scores] and "(" in evaluation.line
    assert evaluation.samples == 12 and evaluation.tables.keys() == {"results", "per_class", "mistakes"}
    assert evaluation.stored["calibration"]["temperature"] > 0


def test_predictions_are_the_most_probable_classes():
    task, info = objective(), ClassInfo(class_names=("cat", "n01440764", "dog"))
    batch = Batch(torch.zeros(2), None, samples=(4, 7))
    first, second = task.predictions(Outputs(LOGITS[:2], {}), batch, info, limit=2)
    assert (first.sample, second.sample) == (4, 7) and list(first.cells) == [
        *("class_1", "probability_1", "class_2", "probability_2")
    ]
    assert second.record["classes"] == ["dog", "tench"] and sum(second.record["probabilities"]) < 1
    assert len(next(task.predictions(Outputs(LOGITS, {}), Batch(LOGITS, None, (0, 1, 2, 3)), info, 9)).cells) == 6


def test_predictions_below_a_threshold_are_unknown_and_a_stored_temperature_calibrates():
    info, batch = ClassInfo(class_names=("cat", "emu", "dog")), Batch(torch.zeros(1), None, samples=(0,))
    logits = torch.tensor([[2.0, 1.0, 0.0]])  # a probability of 0.665, and of 0.506 at a temperature of 2
    (row,) = objective(TEST__THRESHOLD=0.6).predictions(Outputs(logits, {}), batch, info, 1)
    assert row.cells["answer"] == row.record["answer"] == "cat"
    task = objective(TEST__THRESHOLD=0.6)
    task.contents = {"calibration": {"temperature": 2.0}}
    (row,) = task.predictions(Outputs(logits, {}), batch, info, 1)
    assert row.cells == {"answer": "unknown", "class_1": "cat", "probability_1": pytest.approx(0.5065, abs=1e-4)}


@pytest.mark.parametrize(("metric", "higher"), [("top1", True), ("macro_f1", True), ("loss", False)])
def test_the_best_checkpoint_has_the_lowest_loss_or_the_highest_of_other_metrics(metric, higher):
    assert Classification.best_of({"TEST.BEST": metric}).higher_is_better == higher


@pytest.mark.parametrize(("metric", "keeps"), [("top1", False), ("auroc", True)])
def test_all_probabilities_are_kept_for_metrics_that_need_them(monkeypatch, metric, keeps):
    asked = {}
    monkeypatch.setattr("tasks.classification.task.ClassificationEvaluator", lambda *_, **more: asked.update(more))
    task = Classification(configured(TEST__BEST=metric), World())
    task.evaluator(SimpleNamespace(source=None), ClassInfo(class_names=("a", "b")))
    assert asked == {"keeps_all": keeps}
