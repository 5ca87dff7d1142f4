"""Confusion matrix and scores against scikit-learn and counts by hand."""

import pytest
import torch
from sklearn.metrics import confusion_matrix as counted
from sklearn.metrics import jaccard_score

from data.pipeline.label_maps import IGNORED
from tasks.segmentation.metrics import SegmentationEvaluator, class_scores, confusion_matrix, per_class_table
from tests.tools.errors import raises
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.preprocessing import Preprocessing


def maps(seed, classes=4):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (13, 9), generator=draw, dtype=torch.uint8)
    predicted = torch.where(torch.rand(13, 9, generator=draw) < 0.5, labels, labels.flip(0))
    labels[torch.rand(13, 9, generator=draw) < 0.2] = IGNORED
    return labels, predicted


def test_the_scores_are_those_of_scikit_learn():
    labels, predicted = maps(0)
    matrix = confusion_matrix(labels, predicted, 4)
    own, theirs = labels[labels != IGNORED], predicted[labels != IGNORED]
    assert matrix.dtype == torch.int64 and matrix.tolist() == counted(own, theirs, labels=range(4)).tolist()
    iou, _ = class_scores(matrix)
    assert iou.tolist() == pytest.approx((100 * jaccard_score(own, theirs, average=None)).tolist())


def test_a_class_that_never_occurs_does_not_count_and_a_missed_one_is_zero():
    matrix = torch.tensor([[2, 1, 0, 0], [0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]])
    iou, accuracy = class_scores(matrix)
    assert iou.nan_to_num(-1).tolist() == pytest.approx([200 / 3, 0, 0, -1])
    assert accuracy.nan_to_num(-1).tolist() == pytest.approx([200 / 3, -1, 0, -1])
    head, rows = per_class_table(matrix, list("abcd"))
    assert head[0] == "class" and rows[2][:3] == ["c", "0.00", "0.00"] and rows[2][-1] == "b" and rows[3][1] == ""


class Val:
    class source:
        name = staticmethod(lambda i: f"images/{i}.jpg")


def evaluator():
    return SegmentationEvaluator(Val(), list("abcd"), [(0, 0, 0)] * 4, Preprocessing())


def add(to, seeds):
    for seed in seeds:
        labels, predicted = maps(seed)
        target = [{"size": (13, 9), "labels": labels}]
        to.update([predicted], Batch([torch.zeros(3, 8, 8)], target, (seed,)))


class Two(World):
    """Two ranks, of which the other one's sums are known."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def gather(self, values):
        return torch.stack([values, self.other])


def test_any_number_of_ranks_gives_the_same_result():
    whole, first, second = evaluator(), evaluator(), evaluator()
    add(whole, range(5)), add(first, range(3)), add(second, range(3, 5))
    alone = whole.compute(World())
    other = torch.cat([second._matrix.flatten(), torch.tensor([2])])
    assert first.compute(Two(other)).metrics == alone.metrics and alone.samples == 5
    matrix = sum(confusion_matrix(*maps(seed), 4) for seed in range(5))
    iou, accuracy = class_scores(matrix)
    assert alone.metrics["miou"] == pytest.approx(iou.mean().item())
    assert alone.metrics["macc"] == pytest.approx(accuracy.mean().item())
    assert alone.metrics["aacc"] == pytest.approx(100 * (matrix.diagonal().sum() / matrix.sum()).item())
    assert set(alone.pictures) == {"predictions", "worst", "confusion"} and alone.pictures["predictions"]().width > 100


def test_the_images_with_the_fewest_right_pixels_are_drawn():
    own, seeds = evaluator(), range(20)
    add(own, seeds)
    shares = {}
    for seed in seeds:
        labels, predicted = maps(seed)
        shares[f"images/{seed}.jpg"] = (labels == predicted)[labels != IGNORED].float().mean().item()
    assert [name for _, (*_, name) in own._worst] == sorted(shares, key=shares.get)[:6]
    assert [name for *_, name in own._drawn] == [f"images/{seed}.jpg" for seed in range(6)]
    assert own.compute(World()).pictures["worst"]().width > 100


def test_nothing_to_count_is_an_error():
    with raises(DataError, "DATA.DATA_PATH"):
        evaluator().compute(World())
    with raises(DataError, "images/3.jpg"):
        evaluator().update([torch.zeros(2, 2)], Batch([torch.zeros(3, 2, 2)], [{"size": (2, 2)}], (3,)))
