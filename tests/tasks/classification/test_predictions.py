"""Predictions by sample, counted by hand."""

import threading

import pytest
import torch

from tasks.classification.predictions import ClassScore, PredictionCollector, Predictions
from utils.batches import Batch
from utils.distributed.world import World

# sample 3 could not be read
PREDICTIONS = Predictions(
    torch.tensor([0, 1, 2, 4, 5, 6]),
    torch.tensor([0, 0, 0, 2, 2, 2]),
    torch.tensor([0, 1, 2, 2, 0, 0]),
    torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95, 0.8]),
)


def test_confusion_counts_what_could_be_read():
    assert PREDICTIONS.confusion(4).tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]


def test_scores_of_the_classes_that_have_samples():
    first, last = PREDICTIONS.per_class(4)
    assert first == ClassScore(0, 3, 1, 1)  # of equals, the first
    assert last == ClassScore(2, 3, 1, 0) and last.top1 == pytest.approx(100 / 3)
    assert Predictions(*[torch.tensor([1])] * 3, torch.ones(1)).per_class(2) == [ClassScore(1, 1, 1, None)]


def test_counts_per_class_are_plain_values():
    counts = PREDICTIONS.class_counts(4)
    matrix = PREDICTIONS.confusion(4)
    assert counts["correct"] == matrix.diagonal().tolist() and counts["predicted"] == matrix.sum(0).tolist()
    assert counts["samples"] == [int((PREDICTIONS.labels == label).sum()) for label in range(4)]


def test_the_worst_mistakes_are_the_most_confident_ones():
    assert PREDICTIONS.worst(10) == [4, 1, 5, 2] and PREDICTIONS.worst(1) == [4]


def test_predictions_hold_class_and_probability():
    collector = PredictionCollector()
    batch = Batch(torch.zeros(2), torch.tensor([1, 0]), samples=(3, 9))
    collector.add(torch.tensor([[0.0, 0.0], [1.0, 3.0]]).bfloat16(), batch)
    found = collector.result(World())
    assert found.samples.tolist() == [3, 9] and found.labels.tolist() == [1, 0] and found.predicted.tolist()[1] == 1
    assert found.confidence.tolist() == pytest.approx([0.5, torch.tensor([1.0, 3.0]).softmax(0).max().item()])
    empty = PredictionCollector().result(World())
    assert empty.labels.shape == (0,) and empty.worst(1) == []


class Two(World):
    """Ranks in threads that gather through a list."""

    def __init__(self, rank, shared):
        super().__init__(rank, 2)
        object.__setattr__(self, "shared", shared)

    def gather(self, values):
        slots, barrier = self.shared
        slots[self.rank] = values.double()
        barrier.wait(10)
        stacked = torch.stack([slots[0], slots[1]])
        barrier.wait(10)
        return stacked


def test_predictions_of_several_ranks_are_in_the_order_of_the_samples():
    shared, results = ({}, threading.Barrier(2)), {}

    def work(rank, samples):
        collector = PredictionCollector()
        for sample in samples:
            collector.add(torch.eye(8)[[sample]], Batch(torch.zeros(1), torch.tensor([sample]), samples=(sample,)))
        results[rank] = collector.result(Two(rank, shared))

    threads = [threading.Thread(target=work, args=each) for each in ((0, [0, 2, 4]), (1, [1, 5]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results.values():
        assert found.samples.tolist() == found.labels.tolist() == found.predicted.tolist() == [0, 1, 2, 4, 5]
