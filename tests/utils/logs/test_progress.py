"""Means of named losses over a log interval."""

import logging

import pytest
import torch

from tests.tools.builders import batches, objective, plan, session, shape, small, train_state
from utils.distributed.world import World
from utils.logs import progress as progress_module
from utils.logs.metrics_file import MetricsFile
from utils.logs.progress import Progress
from utils.runs.saver import Saver
from utils.training.loop import train_epoch
from utils.training.update import Readback, Update

INF = float("inf")


def update(loss, part, applied=True):
    losses = {"loss": torch.tensor(loss), "part": torch.tensor(part)}
    return Update(0, losses, 0.1, Readback(torch.tensor([2.0 if applied else INF, 1.0])))


@pytest.fixture
def written(monkeypatch):
    lines = []
    monkeypatch.setattr(MetricsFile, "write", lambda self, record, scalars: lines.append((record, scalars)))
    return lines


def progress(state, print_freq=2):
    return Progress(state, plan(shape(18)), world=World(), journal=MetricsFile(None, 0), print_freq=print_freq)


def test_parts_are_averaged_and_reported_by_name(written):
    state = train_state(small())
    run = progress(state)
    for step, (loss, part) in enumerate([(1.0, 0.5), (3.0, 1.5)], start=1):
        state.step = step
        run.record(update(loss, part))
    run.collect()
    run.report()
    ((record, scalars),) = written
    assert (record["loss"], record["part"], record["grad_norm"]) == (2.0, 1.0, 2.0)
    assert (scalars["train/part"], scalars["train/loss"]) == (1.0, 2.0)
    assert state.means["epoch_loss"].value == 2.0 and state.means["loss/part"].weight == 0  # cleared


def test_a_resumed_interval_reports_the_same_means(written):
    state = train_state(small())
    state.step = 1
    run = progress(state)
    run.record(update(1.0, 0.5))
    run.collect()
    saved = {name: [mean.total, mean.weight] for name, mean in state.means.items()}
    other = train_state(small())
    other.means = {name: type(mean)(*saved[name]) for name, mean in state.means.items()}
    other.step = 2
    again = progress(other)
    again.record(update(3.0, 1.5))
    again.collect()
    again.report()
    assert (written[0][0]["loss"], written[0][0]["part"]) == (2.0, 1.0)


def test_skipped_updates_do_not_count_and_small_ones_count_less(written):
    state = train_state(small())
    run = progress(state, print_freq=100)
    due = []
    for step, (loss, applied) in enumerate([(1.0, True), (9.0, False), (1.0, True), (1.0, True), (4.0, True)], start=1):
        state.step = step  # four updates of four samples, one of two
        due.append(run.record(update(loss, loss, applied)))
    assert due == [False, False, False, False, True]
    run.collect()
    run.report()
    assert written[0][0]["loss"] == pytest.approx((3 * 4 * 1.0 + 2 * 4.0) / 14)


@pytest.mark.parametrize("every", [0, 1])
def test_means_and_speed_count_images_and_leave_saving_out(tmp_path, monkeypatch, every):
    """A clock that moves one second an update and a hundred for a save; ten updates of four images, the last of two."""
    now, reported = [0.0], []
    save, write = Saver.save, MetricsFile.write

    def tick(seconds, result=None):
        now[0] += seconds
        return result

    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Saver, "save", lambda *args: tick(100, save(*args)))
    monkeypatch.setattr(MetricsFile, "write", lambda self, r, s: (reported.append(s), write(self, r, s))[1])
    run_state, run_plan = train_state(small()), plan(shape(38))
    losses = []

    def after(update):
        losses.append(update.losses["loss"].item())
        tick(1)
        run_session.after_update(update)

    with session(tmp_path, run_state, run_plan, save_updates=every) as run_session:
        train_epoch(run_state, run_session.watch(batches(10)), objective(), run_plan, after)
    assert now[0] == 10 + 900 * every
    assert [s["speed/images_per_s"] for s in reported] == pytest.approx([4, (4 * 4 + 2) / 5])
    assert [s["speed/waiting_for_data"] for s in reported] == [0, 0]
    weights = [4] * 9 + [2]
    mean = sum(x * w for x, w in zip(losses, weights, strict=True)) / sum(weights)
    assert run_state.means["epoch_loss"].value == pytest.approx(mean)
    assert reported[1]["train/loss"] == pytest.approx(
        sum(x * w for x, w in zip(losses[5:], weights[5:], strict=True)) / 18
    )


def test_the_log_line_names_every_part(written, caplog):
    state = train_state(small())
    state.step = 1
    run = progress(state)
    run.record(update(3.0, 2.5))
    run.collect()
    with caplog.at_level(logging.INFO):
        run.report()
    assert caplog.messages[0].startswith("[0/2][1/5] loss 3.0000 part 2.5 lr 1.00e-01 norm 2.00 0.00 img/s eta ")


def test_an_interval_of_skipped_updates_has_no_loss(written):
    state = train_state(small())
    state.step = state.update = state.skipped = 1
    run = progress(state)
    run.record(update(float("nan"), float("nan"), applied=False))
    run.collect()
    run.report()
    record = written[0][0]
    assert (record["loss"], record["grad_norm"], record["skipped"]) == (None, None, 1)


def test_parts_survive_a_round_trip_through_a_checkpoint(written):
    """Nothing was recorded since the checkpoint: the names of the parts come from it."""
    state = train_state(small())
    state.step = 1
    run = progress(state)
    run.record(update(1.0, 0.5))
    run.collect()
    other = train_state(small())
    other.load_state_dict(state.state_dict(), lambda *_: "", "test")
    progress(other).report()
    assert (written[0][0]["loss"], written[0][0]["part"]) == (1.0, 0.5)


def test_batches_are_passed_on():
    run = progress(train_state(small()))
    assert list(run.watch(iter([1, 2, 3]))) == [1, 2, 3]
