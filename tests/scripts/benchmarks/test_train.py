"""The whole program, timed from outside."""

import argparse
import json

import pytest

from scripts.benchmark import main
from scripts.benchmarks import train
from tests.conftest import ROOT
from utils.errors import ResourceError

TINY = f"BASE: [{ROOT}/configs/swin_tiny.yaml]\nMODEL: {{NAME: t, SWIN: {{EMBED_DIM: 12, NUM_HEADS: [1, 2, 3, 4]}}}}\n"
SHORT = ["--batch-size", "2", "--threads", "1", "--rounds", "1"]


@pytest.mark.seconds
def test_the_program_is_timed_beside_its_bare_step_and_by_two_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "UPDATES", 2)
    monkeypatch.setattr(train, "WARM_UP", 0)
    (tmp_path / "tiny.yaml").write_text(TINY)
    options = ["--model", str(tmp_path / "tiny.yaml"), "--size", "32", *SHORT]
    assert main(["train", *options, "--json", str(tmp_path / "r.json")]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert list(rows) == ["one process to the bare step", "two processes to one process", "laps"]
    (lap,) = rows["laps"]
    assert list(lap) == ["data", "step", "log", "save"] and lap["step"] > lap["data"] >= 0 and lap["save"] > 0
    assert "| saving, when it is due |" in capsys.readouterr().out


def test_a_batch_that_two_processes_cannot_share_is_refused(capsys):
    assert main(["train", "--batch-size", "3"]) == 2
    assert "error: a batch of 3 images cannot be shared by two processes" in capsys.readouterr().err


@pytest.mark.seconds
def test_a_training_that_ends_early_says_why(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY + "TRAIN: {OPTIMIZER: {NAME: none}}\n")
    options = argparse.Namespace(batch_size=2, size=32, threads=1)
    with pytest.raises(ResourceError, match="the training ended early: error: .*OPTIMIZER"):
        train._program(recipe, options, str(tmp_path), 1)
