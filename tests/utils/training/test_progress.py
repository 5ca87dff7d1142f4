"""Means of named losses over a log interval."""

import pytest
import torch

from tests.builders import plan, shape, small, train_state
from utils.distributed import World
from utils.training.journal import Journal
from utils.training.loop import Update
from utils.training.progress import Progress


def update(loss, part, applied=True):
    losses = {"loss": torch.tensor(loss), "part": torch.tensor(part)}
    return Update(losses, 0.1, 2.0, applied)


@pytest.fixture
def written(monkeypatch):
    lines = []
    monkeypatch.setattr(Journal, "write", lambda self, record, scalars: lines.append((record, scalars)))
    return lines


def progress(state, print_freq=2):
    return Progress(state, plan(shape(18)), world=World(), journal=Journal(None, 0), print_freq=print_freq)


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
    assert due == [True, False, False, False, True]
    assert run.collect(wish=True) is True
    run.report()
    assert written[0][0]["loss"] == pytest.approx((3 * 4 * 1.0 + 2 * 4.0) / 14)
