"""When checkpoints are saved, and what is recorded at the end of an epoch."""

import json

import pytest

from tests.builders import batches, objective, plan, session, shape, small, train_state
from utils.evaluation.metrics import Accuracy
from utils.training.loop import train_epoch
from utils.training.objective import Evaluation


def evaluation(top1, loss=1.0):
    result = Accuracy(top1, 90.0, loss, 5, 1, 9, 10)
    return Evaluation(result.as_dict(), result.line())


def train(run_session, run_state, run_plan, count=10):
    train_epoch(run_state, run_session.watch(batches(count)), objective(), run_plan, run_session.after_update)


def test_saving_by_time_does_not_wait_for_log_lines(tmp_path):
    run_state, run_plan = train_state(small()), plan(shape(80))
    train(session(tmp_path, run_state, run_plan, print_freq=100, save_minutes=1e-9), run_state, run_plan, 19)
    assert (tmp_path / "checkpoints/ckpt_epoch_0_step_10.pth").exists()


def test_saved_epochs(tmp_path):
    """Every second epoch, and every epoch that is the best so far."""
    run_state, run_plan = train_state(small()), plan(epochs=5)
    run_session = session(tmp_path, run_state, run_plan, save_freq=2)
    for top1 in (50.0, 40.0, 30.0, 20.0, 60.0):
        run_session.end_epoch(evaluation(top1))
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pth") if not p.is_symlink()) == [
        f"ckpt_epoch_{epoch}.pth" for epoch in (0, 1, 3, 4)
    ]
    assert (tmp_path / "checkpoints/best.pth").readlink().name == "ckpt_epoch_4.pth"


def test_values_that_are_not_finite_are_written_as_null(tmp_path):
    run_state, run_plan = train_state(small()), plan()
    run_session = session(tmp_path, run_state, run_plan)
    run_session.end_epoch(evaluation(10.0, float("nan")))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert record["loss"] is None and record["train_loss"] is None
