"""Answers by sample, counted by hand."""

import threading

import pytest
import torch

from utils.distributed.world import World
from utils.evaluation.answers import AnswerCollector, Answers, ClassScore

# samples 0 to 6; the last one could not be read
ANSWERS = Answers(
    torch.tensor([0, 0, 0, 2, 2, 2, -1]),
    torch.tensor([0, 1, 2, 2, 0, 0, 0]),
    torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95, 0.8, 1.0]),
)


def test_confusion_counts_what_could_be_read():
    assert ANSWERS.confusion(4).tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]


def test_scores_of_the_classes_that_have_samples():
    first, last = ANSWERS.per_class(4)
    assert first == ClassScore(0, 3, 1, 1)  # of equals, the first
    assert last == ClassScore(2, 3, 1, 0) and last.top1 == pytest.approx(100 / 3)
    assert Answers(torch.tensor([1]), torch.tensor([1]), torch.ones(1)).per_class(2) == [ClassScore(1, 1, 1, None)]


def test_the_worst_mistakes_are_the_most_confident_ones():
    assert ANSWERS.worst(10) == [4, 1, 5, 2] and ANSWERS.worst(1) == [4]


def test_answers_hold_class_and_probability():
    collector = AnswerCollector()
    collector.add(torch.tensor([[0.0, 0.0], [1.0, 3.0]]).bfloat16(), torch.tensor([1, -1]))
    answers = collector.result(World())
    assert answers.labels.tolist() == [1, -1] and answers.predicted.tolist()[1] == 1
    assert answers.confidence.tolist() == pytest.approx([0.5, torch.tensor([1.0, 3.0]).softmax(0).max().item()])
    empty = AnswerCollector().result(World())
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


def test_answers_of_several_ranks_stand_in_the_order_of_the_samples():
    shared, results = ({}, threading.Barrier(2)), {}

    def work(rank, labels):
        collector = AnswerCollector()
        for label in labels:
            collector.add(torch.eye(8)[[label]], torch.tensor([label]))
        results[rank] = collector.result(Two(rank, shared))

    threads = [threading.Thread(target=work, args=each) for each in ((0, [0, 2, 4]), (1, [1, 3]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0].labels.tolist() == results[1].labels.tolist() == results[0].predicted.tolist() == [0, 1, 2, 3, 4]
