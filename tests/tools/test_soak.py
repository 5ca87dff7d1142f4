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
from tests.tools.soak import PHASES, Kill, compare, draw_kills, equal, leftovers


def test_kills_hit_every_phase_and_are_drawn_from_the_seed():
    kills = draw_kills(50, 1, processes=2)
    assert kills == draw_kills(50, 1, processes=2) != draw_kills(50, 2, processes=2)
    assert Counter(kill.phase for kill in kills) == dict.fromkeys(PHASES, 10)
    assert {kill.rank for kill in kills if kill.phase == "step"} == {-1, 0, 1}
    assert {kill.rank for kill in kills if kill.phase in ("save", "epoch")} == {0}  # the main rank alone saves


def test_a_kill_is_a_fault():
    assert Fault.parse(Kill("step", 3, 1).fault()) == Fault("step", 3, "kill", rank=1)
    assert Fault.parse(Kill("save", 3, -1).fault()) == Fault("save", 3, "kill")


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
