"""Saving by time, and speeds that leave saving out."""

import json

import pytest

from tests.builders import batches, objective, plan, session, shape, small, train_state
from utils.evaluation.metrics import Accuracy
from utils.training import progress as progress_module
from utils.training import session as session_module
from utils.training.journal import Journal
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


@pytest.mark.parametrize("every", [0, 1])
def test_means_and_speed_count_images_and_leave_saving_out(tmp_path, monkeypatch, every):
    """A clock that moves one second an update and a hundred for a save; ten updates of four images, the last of two."""
    now, reported = [0.0], []
    save, write = session_module.save_checkpoint, Journal.write

    def tick(seconds, result=None):
        now[0] += seconds
        return result

    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(session_module, "save_checkpoint", lambda *a: tick(100, save(*a)))
    monkeypatch.setattr(Journal, "write", lambda self, r, s: (reported.append(s), write(self, r, s))[1])
    run_state, run_plan = train_state(small()), plan(shape(38))
    run_session = session(tmp_path, run_state, run_plan, save_updates=every)
    losses = []

    def after(update):
        losses.append(update.losses["loss"].item())
        tick(1)
        run_session.after_update(update)

    train_epoch(run_state, run_session.watch(batches(10)), objective(), run_plan, after)
    assert [s["speed/images_per_s"] for s in reported] == pytest.approx([4, 4, (3 * 4 + 2) / 4])
    assert [s["speed/waiting_for_data"] for s in reported] == [0, 0, 0]
    weights = [4] * 9 + [2]
    mean = sum(x * w for x, w in zip(losses, weights, strict=True)) / sum(weights)
    assert run_state.means["epoch_loss"].value == pytest.approx(mean)
    assert reported[2]["train/loss"] == pytest.approx(
        sum(x * w for x, w in zip(losses[6:], weights[6:], strict=True)) / 14
    )


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
