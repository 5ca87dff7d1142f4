"""One pass over batches: in order, in evaluation mode, without effect on training."""

import pytest
import torch

from tests.tools.builders import CPU, batches, objective, small
from utils.batches import Batch
from utils.distributed.world import World
from utils.precision import choose_precision
from utils.training.evaluate import evaluate, predict
from utils.training.objective import Evaluation


def stream(model, work, **more):
    return predict(model, work, objective(**more).forward, World())


def test_outputs_come_batch_by_batch_with_their_batch():
    model, work = small().eval(), batches(3)
    for (outputs, batch), expected in zip(stream(model, work), work, strict=True):
        assert batch is expected and not outputs.logits.requires_grad
        with torch.no_grad():
            assert torch.equal(outputs.logits, model(batch.images))


def test_nothing_is_computed_ahead():
    asked = []

    def source():
        for batch in batches(3):
            asked.append(1)
            yield batch

    next(stream(small(), source()))
    assert len(asked) == 1


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(training):
    model = small(drop_path_rate=0.9).train(training)
    outputs = stream(model, batches(2))
    next(outputs)
    assert not model.training
    outputs.close()  # an evaluation that ends early
    assert model.training == training


def test_it_runs_in_the_chosen_precision_and_draws_nothing():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    half = choose_precision(CPU, True, "bfloat16")
    ((outputs, _),) = stream(small(drop_path_rate=0.9), batches(1), precision=half)
    assert outputs.logits.dtype == torch.bfloat16
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


class Sum:
    """The sum of all pixels."""

    def __init__(self):
        self.total = 0.0

    def update(self, outputs, batch):
        self.total += float(outputs)

    def compute(self, world):
        total = world.gather(torch.tensor(self.total)).sum().item()
        return Evaluation({"sum": total}, f"sum {total}")


def test_an_evaluator_sums_what_the_forward_function_returns():
    work = [Batch([torch.ones(3, 2, 2), torch.ones(3, 4, 4)], None), Batch(torch.ones(1, 3, 2, 2), None)]

    def forward(model, batch):
        return sum(model(image).sum() for image in batch.images)

    assert evaluate(torch.nn.Identity(), work, Sum(), forward, World()).metrics == {"sum": 12.0 + 48 + 12}
