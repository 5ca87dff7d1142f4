"""Images with several labels: targets, losses, metrics and predictions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from timm.loss import AsymmetricLossMultiLabel

from configs.loading import load_config
from data.pipeline.sample import Sample
from tasks.classification.labels import ClassInfo
from tasks.classification.mixing import MixingOptions, build_mixing
from tasks.classification.task import Outputs
from tasks.multilabel.labels import SetMixing, StackSets
from tasks.multilabel.losses import LossOptions, MultiLabelLoss, positive_weights
from tasks.multilabel.metrics import MultiLabelEvaluator, Scores, average_precisions, best_thresholds, set_scores
from tasks.multilabel.task import MultiLabel
from tests.tools.errors import raises
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import ConfigError

CLASSES, COUNT = 4, 60
NAMES = ("cat", "dog", "emu", "fox")


def drawn(seed=0, count=COUNT):
    """Logits, and targets of which the last class has none."""
    draw = torch.Generator().manual_seed(seed)
    targets = (torch.rand(count, CLASSES, generator=draw) < torch.tensor([0.5, 0.3, 0.1, 0.0])).float()
    return torch.randn(count, CLASSES, generator=draw) + 1.5 * targets, targets


def scores(**options):
    logits, targets = drawn(**options)
    return Scores(torch.arange(len(logits)), logits.double(), targets.double())


def test_sets_are_stacked_and_absent_ones_left_out():
    image = np.zeros((3, 2, 2), np.uint8)
    collated = StackSets(CLASSES)([Sample(image, (0, 2)), Sample(image, ()), Sample(image, (3,))])
    assert collated.targets.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert StackSets(CLASSES)([Sample(image, None)]).targets is None


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_sets_are_blended_as_their_images_are(mode):
    options = MixingOptions(
        mixup=0.8, cutmix=0.0, minmax=None, prob=1.0, switch_prob=0.5, mode=mode, label_smoothing=0.1
    )
    mixing = build_mixing(CLASSES, options, (8, 8), SetMixing)
    np.random.seed(0)
    targets = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    images, mixed = mixing(targets[:, :, None, None].repeat(1, 1, 8, 8), targets.clone())
    torch.testing.assert_close(images[:, :, 0, 0], mixed)
    assert not torch.equal(mixed, targets)


def test_losses_are_those_of_torch_and_timm():
    logits, targets = drawn()
    torch.testing.assert_close(
        MultiLabelLoss(LossOptions())(logits, targets), F.binary_cross_entropy_with_logits(logits, targets)
    )
    smooth = MultiLabelLoss(LossOptions(smoothing=0.2))(logits, targets)
    torch.testing.assert_close(smooth, F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1))
    own = MultiLabelLoss(LossOptions("asymmetric", 3.0, 0.5, 0.1))(logits.bfloat16(), targets)
    torch.testing.assert_close(own, AsymmetricLossMultiLabel(3.0, 0.5, 0.1)(logits.bfloat16(), targets))


def test_rare_labels_weigh_more_up_to_a_limit():
    assert positive_weights((50, 10, 0, 90), 100, 8.0).tolist() == [1.0, 8.0, 8.0, 1.0]
    logits, targets = drawn()
    weights = torch.tensor([1.0, 2.0, 5.0, 5.0])
    counts = (30, 20, 5, 0)
    for name in ("bce", "asymmetric"):
        own = MultiLabelLoss(LossOptions(name, most=5.0), counts, COUNT)(logits, targets)
        expected = {
            "bce": F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights),
            "asymmetric": AsymmetricLossMultiLabel(pos_weight=weights)(logits, targets),
        }[name]
        torch.testing.assert_close(own, expected)
    samples = torch.linspace(0, 2, COUNT)
    own = MultiLabelLoss(LossOptions(), sample_weights=samples)(logits, targets, range(COUNT))
    terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    torch.testing.assert_close(own, (terms * samples).mean())


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


def test_options_for_one_label_are_refused():
    for key, value in (("LOSS.FOCAL_GAMMA", 2), ("DISTILLATION.KIND", "soft"), ("TEST.REAL", True)):
        with raises(ConfigError, key, "several labels"):
            task(key, value, "DISTILLATION.WEIGHTS", "x.pth")
    with raises(ConfigError, "TEST.BEST", "map"):
        task("TEST.BEST", "top1")
    assert task().best.metric == "map" and task("TEST.BEST", "loss").best.higher_is_better is False
    assert task().cfg.MODEL.LABEL_SMOOTHING == 0
