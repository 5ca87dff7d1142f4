"""What the soak test draws and compares; tests/test_survival.py runs it."""

import json
import os
import subprocess
import time
from collections import Counter

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from tests.tools.inject import Fault
from tests.tools.soak import PHASES, TARGETS, Kill, Outcome, compare, draw_kills, equal, leftovers


def test_kills_hit_every_phase_and_are_drawn_from_the_seed():
    kills = draw_kills(700, 1, processes=2)
    assert kills == draw_kills(700, 1, processes=2) != draw_kills(700, 2, processes=2)
    assert Counter(kill.phase for kill in kills) == dict.fromkeys(PHASES, 100)
    assert {(kill.phase, kill.target) for kill in kills} == {(p, target) for p in PHASES for target in TARGETS[p]}
    assert {kill.rank for kill in kills if kill.phase == "step" and kill.target == "rank"} == {-1, 0, 1}
    assert {kill.rank for kill in kills if kill.target == "worker"} == {0, 1}
    assert {kill.rank for kill in kills if kill.phase in ("save", "epoch")} == {0}  # the main rank alone saves
    assert all(kill.target != "launcher" and kill.phase != "rendezvous" for kill in draw_kills(50, 1, processes=1))


def test_a_kill_is_a_fault():
    assert Fault.parse(Kill("step", 3, 1).fault()) == Fault("step", 3, "kill", rank=1)
    assert Fault.parse(Kill("save", 3, -1).fault()) == Fault("save", 3, "kill")
    assert Fault.parse(Kill("step", 3, 1, "worker").fault()) == Fault("step", 3, "kill=worker", rank=1)


LOST = "error: DATA.NUM_WORKERS: a loader worker died\n"


@pytest.mark.parametrize(
    ("target", "code", "out", "seconds", "fault"),
    [
        ("worker", 7, LOST, 5, ""),
        ("worker", 0, "", 50, ""),  # it went on
        ("worker", 1, f"{LOST}Root Cause\n  exitcode  : 7 (pid: 3)\n", 5, ""),
        ("worker", 1, LOST, 5, "code 1"),
        ("worker", 7, LOST, 31, "ended after 31 s"),
        ("worker", 7, 2 * LOST, 5, "2 error lines"),
        ("worker", 7, "", 5, "0 error lines"),
        ("worker", 0, LOST, 5, "error lines"),
        ("worker", 7, f"Exception ignored in x\n{LOST}", 5, "noise"),
        ("worker", 7, f"Traceback (most recent call last):\n{LOST}", 5, "noise"),
        ("server", 5, "error: torchrun: it was killed\n", 5, "blames another"),
        ("launcher", -9, "error: torchrun: it was killed\n", 5, ""),
        ("rank", -9, "error: rank 0: it died\n", 5, ""),
        ("rank", -9, "error: rank 1: it died\n", 5, "blames another"),
        ("rank", -9, "", 5, "0 error lines"),
        ("tracker", 7, LOST, 5, "blames another"),
    ],
)
def test_a_run_ends_well_or_not(target, code, out, seconds, fault):
    found = Outcome(code, out, seconds).fault_of(Kill("step", 1, 0, target))
    assert found.startswith(fault) and bool(found) == bool(fault), found


def test_of_a_kill_that_no_rank_can_know_torchrun_reports():
    report = "Root Cause\n exitcode : -9 (pid: 3)\n Signal 9 (SIGKILL) received by PID 3"
    assert Outcome(-9, "", 5).fault_of(Kill("step", 1, -1, launched=False)) == ""
    for kill in (Kill("step", 1, -1), Kill("imports", 1, 0)):
        assert Outcome(1, report, 5).fault_of(kill) == ""
        assert Outcome(1, "", 5).fault_of(kill) == "nobody names the killed rank"
    for kill in (Kill("step", 1, 0), Kill("imports", 1, 1), Kill("imports", 1, 0, launched=False)):
        assert Outcome(1, report, 5).fault_of(kill) == "0 error lines"


def write(folder, *, loss=0.5, weight=1.0, scalar=0.25, speed=1.0):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"loss": loss}) + "\n")
    contents = {key: {} for key in ("model", "model_ema", "optimizer", "counters", "best", "means")}
    contents["model_ema"] = {"a": torch.full((2,), weight)}
    for name in ("last.pth", "best.pth"):
        torch.save(contents, folder / "checkpoints" / name)
    with SummaryWriter(str(folder / "tensorboard")) as board:
        board.add_scalar("train/loss", scalar, 1)
        board.add_scalar("speed/images_per_s", speed, 1)
    return folder


def test_two_runs_are_compared_bit_for_bit(tmp_path):
    one = write(tmp_path / "one")
    assert compare(one, write(tmp_path / "same", speed=2.0)) == ""
    for name, change, what in (
        ("lines", {"loss": 0.6}, "metrics.jsonl"),
        ("weights", {"weight": 1.0 + 2**-23}, "model_ema of last.pth"),
        ("board", {"scalar": 0.3}, "TensorBoard's train/loss"),
    ):
        assert compare(one, write(tmp_path / name, **change)).startswith(what)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": [torch.ones(2), 1]}, {"a": [torch.ones(2), 1]}, True),
        ({"a": 1}, {"b": 1}, False),
        ([1, 2], [1], False),
        (torch.ones(2), torch.ones(3), False),
        ((0.1, None), (0.1, None), True),
    ],
)
def test_nested_values_are_equal_or_not(one, other, same):
    assert equal(one, other) == same


def test_processes_of_a_run_are_found_by_its_folder(tmp_path):
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "SWIN_SOAK": str(tmp_path)}) as process:
        try:
            deadline = time.monotonic() + 10
            while not leftovers(tmp_path) and time.monotonic() < deadline:  # its environment appears after it starts
                time.sleep(0.01)
            assert leftovers(tmp_path) == [process.pid] and leftovers(tmp_path / "other") == []
        finally:
            process.kill()
    assert leftovers(tmp_path) == []
