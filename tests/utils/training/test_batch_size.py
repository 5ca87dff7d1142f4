"""The search for the largest batch that fits into memory."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from models.registry import fresh_model
from tests.tools.builders import CPU, configured
from utils.distributed.world import World
from utils.errors import ConfigError, ResourceError
from utils.training import batch_size
from utils.training.batch_size import Trial, fit_batch_size, largest_that_fits

SMALL = {
    "MODEL__NUM_CLASSES": 5,
    "MODEL__SWIN__EMBED_DIM": 8,
    "MODEL__SWIN__DEPTHS": [2],
    "MODEL__SWIN__NUM_HEADS": [2],
    "DATA__IMG_SIZE": 28,
    "TRAIN__GLOBAL_BATCH_SIZE": 24,
}
GPU = World(device=torch.device("cuda"))  # none is used


def attempt(memory, tried, size):
    tried.append(size)
    if size > memory:
        raise torch.OutOfMemoryError


@pytest.mark.parametrize(("memory", "found"), [(0, 0), (1, 1), (5, 4), (8, 8), (11, 8), (100, 24)])
def test_the_largest_is_found_by_halving(memory, found):
    tried = []
    assert largest_that_fits([1, 2, 3, 4, 6, 8, 12, 24], partial(attempt, memory, tried)) == found
    assert len(tried) <= 4


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def fail(size):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        largest_that_fits([1, 2], fail)


def test_a_trial_takes_two_updates_with_the_recipes_optimizer_and_average():
    cfg = configured(DATA__BATCH_SIZE="auto", TRAIN__EMA__ENABLE=True, **SMALL)
    trial = Trial(cfg, World(), fresh_model(cfg, CPU))
    for size in (1, 4):
        trial.run(size)
    state = trial._state
    assert state.update == 4 and state.ema is not None
    moments = state.optimizer.state.values()
    # the memory of a trial is that of a run that begins: what the trial before has left does not count
    assert len(moments) == len([*state.model.parameters()]) and {int(each["step"]) for each in moments} == {2}


@pytest.fixture
def gpus(monkeypatch):
    """GPUs whose memory holds five images."""
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: None)
    monkeypatch.setattr(Trial, "__init__", lambda *_: None)
    monkeypatch.setattr(Trial, "run", lambda self, size: attempt(5, [], size))


def fit(world=GPU, **more):
    return fit_batch_size(configured(**{"DATA__BATCH_SIZE": "auto", **SMALL, **more}), world, lambda *_: None)


def test_the_batch_divides_a_ranks_share_of_the_global_batch(gpus):
    assert fit().DATA.BATCH_SIZE == 4
    assert fit(TRAIN__GLOBAL_BATCH_SIZE=25).DATA.BATCH_SIZE == 5
    assert fit(DATA__BATCH_SIZE=7).DATA.BATCH_SIZE == 7


def test_the_rank_with_the_least_memory_decides(gpus, monkeypatch):
    monkeypatch.setattr(World, "gather_objects", lambda self, value: [value, 3])
    assert fit(replace(GPU, size=2)).DATA.BATCH_SIZE == 3


def test_evaluation_takes_the_usual_batch():
    assert fit(EVAL_MODE=True, MODEL__RESUME="x").DATA.BATCH_SIZE == 128
    assert fit(THROUGHPUT_MODE=True).DATA.BATCH_SIZE == 128


def test_what_cannot_be_found_out_is_refused(gpus, monkeypatch):
    with pytest.raises(ConfigError, match="on GPUs only: DATA.BATCH_SIZE: set a number"):
        fit(World())
    with pytest.raises(ConfigError, match="TRAIN.GLOBAL_BATCH_SIZE: set it, as 1024"):
        fit(TRAIN__GLOBAL_BATCH_SIZE=0)
    monkeypatch.setattr(batch_size, "largest_that_fits", lambda *_: 0)
    with pytest.raises(ResourceError, match="too small for a single image: --use-checkpoint"):
        fit()
