"""Predictions as a stream."""

import pytest
import torch

from tests.tools.builders import CPU, FLOAT32, batches, eval_batches, small
from utils.distributed.world import World
from utils.evaluation.predict import predict, restrict
from utils.precision import choose_precision


def test_logits_come_batch_by_batch_with_their_targets():
    model, work = small().eval(), eval_batches(batches(3))
    for (logits, targets), (images, expected) in zip(predict(model, work, FLOAT32, World()), work, strict=True):
        assert torch.equal(targets, expected) and not logits.requires_grad
        with torch.no_grad():
            assert torch.equal(logits, model(images))


def test_nothing_is_computed_ahead():
    asked = []

    def source():
        for batch in eval_batches(batches(3)):
            asked.append(1)
            yield batch

    next(predict(small(), source(), FLOAT32, World()))
    assert len(asked) == 1


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(training):
    model = small(drop_path_rate=0.9).train(training)
    stream = predict(model, eval_batches(batches(2)), FLOAT32, World())
    next(stream)
    assert not model.training
    stream.close()  # an evaluation that ends early
    assert model.training == training


def test_it_runs_in_the_chosen_precision_and_draws_nothing():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    half = choose_precision(CPU, True, "bfloat16")
    ((logits, _),) = predict(small(drop_path_rate=0.9), eval_batches(batches(1)), half, World())
    assert logits.dtype == torch.bfloat16
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_allowed_classes_keep_their_logits():
    logits = torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 4.0]])
    restricted = restrict(logits, torch.tensor([0, 2]))
    assert restricted.tolist() == [[3.0, float("-inf"), 1.0], [0.0, float("-inf"), 4.0]]
    assert logits[0, 1] == 2.0  # a copy
