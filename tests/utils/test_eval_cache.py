"""Derived tensors are kept in an evaluation, and nowhere else."""

import torch
from torch import nn

from utils.eval_cache import derived, keep_derived


def counted(calls, *sources):
    return derived(lambda: calls.append(1) or sum(sources) * 2, *sources)


def test_outside_of_an_evaluation_nothing_is_kept():
    source, calls = torch.ones(2), []
    with torch.no_grad():
        counted(calls, source)
        source.data.add_(1)
        assert counted(calls, source).tolist() == [4, 4] and len(calls) == 2


def test_in_an_evaluation_each_is_computed_once_until_a_source_changes():
    source, other, calls = nn.Parameter(torch.ones(2)), torch.ones(2), []
    with torch.no_grad(), keep_derived():
        assert counted(calls, source).tolist() == counted(calls, source).tolist() == [2, 2] and len(calls) == 1
        source.add_(1)
        assert counted(calls, source).tolist() == [4, 4] and len(calls) == 2
        assert counted(calls, source, other).tolist() == [6, 6] and len(calls) == 3
        with keep_derived():
            counted(calls, source)
            assert len(calls) == 4
        counted(calls, source)
        assert len(calls) == 4


def test_with_gradients_nothing_is_kept():
    source, calls = nn.Parameter(torch.ones(2)), []
    with keep_derived():
        counted(calls, source)[0].backward()
        counted(calls, source)
    assert len(calls) == 2 and source.grad.tolist() == [2, 0]


def test_a_model_made_in_inference_mode():
    with torch.inference_mode(), keep_derived():
        source = torch.ones(2)
        assert derived(lambda: source * 2, source).tolist() == [2, 2]
