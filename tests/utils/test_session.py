"""Saving by time, and speeds that leave saving out."""

import json
import time

import pytest

from tests.utils.test_engine import batches, plan, small, state
from utils import session as session_module
from utils.distributed import World
from utils.engine import train_epoch
from utils.metrics import EvalResult
from utils.run_logger import Journal
from utils.session import OutputFolder, Session


def session(tmp_path, run_state, run_plan, **more):
    arguments = {"print_freq": 5, "save_freq": 1, "save_updates": 0, "save_minutes": 0.0, "keep": 0, **more}
    folder = OutputFolder(tmp_path, World())
    folder.claim("TAG: x\n", lambda text: [])
    return Session(run_state, run_plan, folder, World(), facts={"config": "TAG: x\n"}, **arguments)


def train(run_session, run_state, run_plan, count=10):
    train_epoch(run_state, run_session.watch(batches(count)), run_plan, 0.1, run_session.after_update)


def test_saving_by_time_does_not_wait_for_log_lines(tmp_path):
    run_state, run_plan = state(small()), plan(train_size=80)
    train(session(tmp_path, run_state, run_plan, print_freq=100, save_minutes=1e-9), run_state, run_plan, 19)
    assert (tmp_path / "checkpoints/ckpt_epoch_0_step_10.pth").exists()


@pytest.mark.parametrize("every", [0, 1])
def test_interval_means_and_speed_survive_a_save(tmp_path, monkeypatch, every):
    """Saving after every update changes neither the losses that are logged nor the speed."""
    undisturbed, run_plan = state(small()), plan()
    train(session(tmp_path / "a", undisturbed, run_plan), undisturbed, run_plan)
    expected = (tmp_path / "a/metrics.jsonl").read_text()

    reported: list[dict] = []
    slow, write = session_module.save_checkpoint, Journal.write
    monkeypatch.setattr(session_module, "save_checkpoint", lambda *a: (time.sleep(0.3), slow(*a))[1])
    monkeypatch.setattr(Journal, "write", lambda self, r, s: (reported.append(s), write(self, r, s))[1])
    run_state = state(small())
    train(session(tmp_path / "b", run_state, run_plan, save_updates=every), run_state, run_plan)
    assert (tmp_path / "b/metrics.jsonl").read_text() == expected
    assert reported[1]["speed/images_per_s"] > 4 / 0.3  # four images an update; less if the pauses of 0.3 s counted
    assert reported[1]["speed/waiting_for_data"] < 0.5


def test_values_that_are_not_finite_are_written_as_null(tmp_path):
    run_state, run_plan = state(small()), plan()
    run_session = session(tmp_path, run_state, run_plan)
    run_session.end_epoch(EvalResult(10.0, 50.0, float("nan"), 5, 1, 5, 10))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert record["loss"] is None and record["train_loss"] is None


def test_lines_beyond_the_checkpoint_are_taken_back(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"update": 2}\n{"update": 3}\n{"upd')
    Journal(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n{"update": 2}\n'
