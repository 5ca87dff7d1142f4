"""Imbalanced classes: how often samples are drawn, and what is said."""

import logging

import numpy as np
import pytest
import torch

from data.pipeline.samplers import Frequencies, weighted_order
from data.sources.base import IndexedSource
from data.sources.index import Index
from tasks.classification.imbalance import class_frequencies, sample_weights, warn_of_imbalance
from tests.tools.errors import raises
from utils.errors import DataError

COUNTS = (70, 20, 10)


def source(counts=COUNTS, **columns):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return IndexedSource(Index.build([f"{i:03}" for i in range(len(labels))], labels, **columns), "abc", None)


@pytest.mark.parametrize(("rule", "shares"), [("balanced", (1, 1, 1)), ("sqrt", (70**0.5, 20**0.5, 10**0.5))])
def test_classes_are_drawn_as_often_as_asked_in_every_epoch(rule, shares):
    own, frequencies = source(), class_frequencies(source(), rule)
    labels = torch.tensor([own.label(i) for i in range(100)])
    wanted = 100 * np.array(shares) / sum(shares)
    for seed in range(20):
        order = weighted_order(frequencies, seed)
        assert len(order) == 100 and torch.equal(order, weighted_order(frequencies, seed))
        drawn = torch.bincount(labels[order], minlength=3).numpy()
        assert (np.abs(drawn - wanted) < 1).all()
        often = torch.bincount(order, minlength=100)
        assert ((often - frequencies.expected).abs() < 1).all()
    assert not torch.equal(weighted_order(frequencies, 0), weighted_order(frequencies, 1))
    assert class_frequencies(own, "uniform") is None


def test_no_sample_of_a_class_is_preferred():
    """Each of 70 samples is expected 0.476 times in an epoch."""
    frequencies = class_frequencies(source(), "balanced")
    often = sum(torch.bincount(weighted_order(frequencies, seed), minlength=100) for seed in range(300)) / 300
    assert often[:70].std() < 0.05 and float((often - frequencies.expected).abs().max()) < 0.13


def test_totals_are_exact_despite_rounding():
    for size in (1, 3, 1000):
        expected = torch.rand(size, dtype=torch.float64)
        frequencies = Frequencies(expected * size / expected.sum(), torch.zeros(size, dtype=torch.int64))
        assert all(len(weighted_order(frequencies, seed)) == size for seed in range(10))


def test_sample_weights_have_mean_1():
    assert sample_weights(source()) is None
    weights = sample_weights(source((2, 1), weight=[1.0, 2.0, 3.0]))
    assert weights.tolist() == pytest.approx([0.5, 1.0, 1.5])
    with raises(DataError, "DATA.WEIGHT_COLUMN"):
        sample_weights(source((2, 1), weight=[0.0, 0.0, 0.0]))


def test_imbalance_is_said_unless_something_is_done(caplog):
    caplog.set_level(logging.WARNING)
    warn_of_imbalance("abc", (70, 20, 7), "DATA.SAMPLER")
    warn_of_imbalance("abc", (69, 20, 7), "DATA.SAMPLER")
    warn_of_imbalance("abc", (69, 0, 0), "DATA.SAMPLER")
    (line,) = caplog.messages
    assert "a has 70 training samples, c has 7" in line and line.endswith("see DATA.SAMPLER")
