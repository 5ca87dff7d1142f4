"""The seam for new tasks: an objective with named losses, its own metric and no validation data."""

import json
from contextlib import suppress

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.tools.builders import Subject, plan, provenance, session, shape, train_state
from utils.batches import Batch
from utils.checkpoints.files import find_newest
from utils.distributed.world import World
from utils.runs.folder import RunFolder
from utils.runs.resume import StartOptions, start_of
from utils.training.loop import train_epoch
from utils.training.objective import Best, Evaluation

SLOPE = torch.tensor([[2.0, -1.0]])
PLAN = plan(shape(12, batch_size=2), peak_lr=0.1, epochs=3)


class Regression:
    """Fits a line; the loss has two parts, the best checkpoint has the smallest distance to the true slope."""

    best = Best("distance", higher_is_better=False)

    def loss(self, model, batch):
        error = (model(batch.images) - batch.targets).square().mean()
        penalty = 1e-3 * sum(p.square().sum() for p in model.parameters())
        return {"loss": error + penalty, "error": error, "penalty": penalty}

    def __init__(self):
        self.updates = []

    def after_update(self, model, done, planned):
        self.updates.append((done, planned))

    def evaluate(self, model):
        distance = (model.weight - SLOPE).norm().item()
        return Evaluation({"distance": distance}, f"distance {distance:.3f}")


def work(epoch, first=0):
    generator = torch.Generator().manual_seed(epoch)
    inputs = torch.randn(6, 2, 2, generator=generator)
    return [Batch(x, x @ SLOPE.T) for x in inputs][first:]


def load(model, contents, origin, info=None):
    model.load_state_dict(contents["model"])
    return f"weights of {origin}"


class Stop(Exception):
    pass


def train(folder, objective, stop_at=None):
    """Trains to the end, or until `stop_at` updates are done; resumes what is in the folder."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    run_folder = RunFolder(folder, World())
    start = start_of(StartOptions(), run_folder, provenance(global_batch=2), World())
    start.load_weights(model, load)
    state = train_state(model, ema_decay=0.9)
    start.restore(state, PLAN, load)

    def after_update(update):
        run.after_update(update)
        if state.update == stop_at:
            raise Stop

    subject = Subject(best=objective.best, evaluate=objective.evaluate)
    own = {"subject": subject, "save_updates": 4, "print_freq": 3}
    with suppress(Stop), session(folder, state, PLAN, **own) as run:
        while state.epoch < PLAN.epochs:
            train_epoch(state, run.watch(work(state.epoch, state.step)), objective, PLAN, after_update)
            run.end_epoch()


def saved(folder):
    return find_newest(folder / "checkpoints")[1]


@pytest.mark.seconds
def test_a_new_objective_trains_resumes_bit_equal_and_is_logged_by_its_names(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    regression = Regression()
    train(whole, regression)
    assert regression.updates == [(done, 18) for done in range(1, 19)]
    train(stopped, Regression(), stop_at=9)  # within the second epoch, after the save at update 8
    train(stopped, Regression())
    assert (whole / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()
    one, other = saved(whole), saved(stopped)
    assert torch.equal(one["model"]["weight"], other["model"]["weight"])
    assert torch.equal(one["model_ema"]["weight"], other["model_ema"]["weight"])
    assert one["best"] == other["best"] and one["counters"] == other["counters"]

    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["kind"] == "train"]
    assert all(line["loss"] == pytest.approx(line["error"] + line["penalty"]) for line in updates)
    distances = [line["distance"] for line in lines if line["kind"] == "val"]
    assert len(distances) == 3 and one["best"] == {
        "value": min(distances),
        "epoch": distances.index(min(distances)),
        "step": 0,
    }
    assert (whole / "checkpoints/best.pth").readlink().name == f"ckpt_epoch_{one['best']['epoch']}.pth"
    board = EventAccumulator(str(whole / "tensorboard")).Reload()
    assert {"train/error", "train/penalty", "train/loss", "val/distance"} <= set(board.Tags()["scalars"])


def test_without_any_evaluation_every_epoch_is_saved_and_its_loss_recorded(tmp_path):
    class Unjudged(Regression):
        best = None

        def evaluate(self, model):
            return None

    train(tmp_path, Unjudged())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0, 1, 2]
    assert all(line["train_loss"] > 0 for line in lines if line["kind"] == "epoch")
    assert not (tmp_path / "checkpoints/best.pth").exists() and saved(tmp_path)["best"]["value"] is None


@pytest.mark.parametrize(
    ("higher", "value", "best", "improves"),
    [(True, 2, 1, True), (True, 1, 1, False), (False, 1, 2, True), (False, 2, 1, False), (True, 0, None, True)],
)
def test_what_counts_as_better(higher, value, best, improves):
    assert Best("x", higher).improves(value, best) == improves


def test_nan_is_never_the_best():
    assert not any(Best("x", h).improves(float("nan"), b) for h in (True, False) for b in (None, 1.0))
