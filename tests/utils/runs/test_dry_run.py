"""--dry-run: what it trains, what it says, and that nothing stays."""

import logging
import re

import pytest
import torch

from tests.tools.builders import CPU, batches, evaluation_of, objective, plan, shape, small, train_state
from tests.tools.errors import raises
from utils.distributed.world import World
from utils.errors import ResourceError
from utils.runs import dry_run as module
from utils.runs.dry_run import Pace, dry_run
from utils.runs.folder import RunFolder
from utils.training.update import Readback, Update


class Data:
    """Ten updates per epoch; `taken`: the batches that were asked for."""

    def __init__(self, val=None):
        self.val, self.taken, self.closed = val, [], False

    def evaluate(self, model, limit=None):
        return evaluation_of(objective(), model, self.val[:limit])

    def epoch(self, epoch, first_update=0):
        try:
            for number, batch in enumerate(batches(10)[first_update:]):
                self.taken.append((epoch, first_update + number))
                yield batch
        finally:
            self.closed = True


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def run(tmp_path, state, keep=3, run_plan=None, val=None):
    data, folder = Data(val), RunFolder(tmp_path / "none/a/b", World(), read_only=True)
    folder.acquire("TAG: x\n", lambda text: [])
    dry_run(state, data, objective(), run_plan or plan(), folder, keep)
    return data


def test_a_few_updates_are_trained_and_nothing_is_written(tmp_path, monkeypatch, said):
    monkeypatch.setattr("utils.terminal.QUIET", 0)  # otherwise 30 seconds between two lines of progress
    state = train_state(small())
    before = [p.detach().clone() for p in state.model.parameters()]
    loader = run(tmp_path, state, val=batches(8))
    assert loader.taken == [(0, update) for update in range(6)] and loader.closed and state.update == 6
    assert any(not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    assert not list(tmp_path.iterdir())
    text = said.text
    assert re.findall(r"dry run: (\d of 6) batches, ", text) == [f"{done} of 6" for done in range(1, 7)]
    assert re.search(r"dry run: loss \d\.\d{4}, gradient norm \d+\.\d{3} after 6 updates; an update takes", text)
    assert re.search(r"an epoch  about 0:00:\d\d: 10 updates 0:00:\d\d, evaluation 0:00:\d\d", text)
    assert "for 2 epochs" in text and re.search(r"5 checkpoints of \d+ MiB = \d+ MiB at most", text)


def test_a_run_goes_on_where_it_stands(tmp_path, said):
    state = train_state(small())
    state.epoch, state.step, state.update = 1, 7, 17
    assert run(tmp_path, state).taken == [(1, 7), (1, 8), (1, 9)]
    assert "for 1 epoch," in said.text and "evaluation 0:00:00" in said.text


def test_after_an_evaluation_that_was_cut_short_the_next_epoch_is_rehearsed(tmp_path, said):
    state = train_state(small())
    state.epoch, state.step, state.update = 0, 10, 10
    assert run(tmp_path, state).taken == [(1, update) for update in range(6)] and "for 1 epoch," in said.text
    state.epoch, state.step = 1, 10
    assert not run(tmp_path, state).taken and "all 2 epochs are done" in said.text


def test_nothing_is_left_of_a_run_that_has_ended(tmp_path, said):
    state = train_state(small())
    state.start_at(2, plan())
    assert not run(tmp_path, state).taken and "all 2 epochs are done" in said.text


def test_a_disk_without_room_is_found_out(tmp_path, monkeypatch, said):
    monkeypatch.setattr("utils.checkpoints.files.free_mib", lambda folder: 0.01)
    with raises(ResourceError, tmp_path / "none/a/b/checkpoints", "MiB are free"):
        run(tmp_path, train_state(small()))


def test_the_first_update_does_not_count(monkeypatch):
    clock = iter([0.0, 1.0, 9.0, 20.0, 21.0, 22.0, 24.0, 25.0, 27.0, 30.0, 31.0, 31.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    pace, work = Pace(CPU), batches(3)
    update = Update(0, {"loss": torch.tensor(2.5)}, 0.1, Readback(torch.tensor([3.0, 3.0, 1.0])))
    for _ in pace.watch(work):  # waits 1 to 9, 21 to 22, 25 to 27
        pace.lap(update)  # at 20, 24, 30
    assert pace.seconds == pytest.approx((4 + 6) / 2) and pace.waiting == pytest.approx(3 / 10)
    assert pace.losses == [2.5] * 3 and pace.norms == [3.0] * 3


@pytest.mark.parametrize(("count", "seconds"), [(0, 0), (3, 3.5), (5, 5.5), (100, 1.5 + 99)])
def test_the_time_of_an_evaluation_is_that_of_its_batches(monkeypatch, count, seconds):
    now = [0.0]

    class Timed:
        val = range(count) if count else None

        def evaluate(self, model, limit):
            now[0] += 0.5 + limit

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    assert module._evaluation_seconds(train_state(small()), Timed(), World()) == pytest.approx(seconds)


def test_an_epoch_of_a_larger_plan(tmp_path, said):
    run(tmp_path, train_state(small()), run_plan=plan(shape(4000), epochs=300), keep=0)
    assert "1,000 updates" in said.text and "302 checkpoints" in said.text


def test_every_rank_evaluates_as_often_even_without_a_sample(monkeypatch):
    """An evaluation is a collective operation."""
    monkeypatch.setattr(World, "gather_objects", lambda self, value: [3, value])
    limits = []

    class Empty:
        val = ()

        def evaluate(self, model, limit):
            limits.append(limit)

    module._evaluation_seconds(train_state(small()), Empty(), World(1, 2))
    assert limits == [1, 3]


def test_every_evaluation_of_a_run_in_updates_may_leave_a_checkpoint(tmp_path, said):
    run(tmp_path, train_state(small()), run_plan=plan(eval_every=2), keep=0)
    assert "12 checkpoints" in said.text  # 10 evaluations of 20 updates, the best, and one that is written
