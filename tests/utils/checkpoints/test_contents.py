"""Metadata of checkpoints: right types, bounded nesting."""

import json
from pathlib import Path

import pytest
import torch

from tests.tools.errors import raises
from utils.checkpoints.contents import checked, parse_notes
from utils.errors import CheckpointError

COUNTERS = {"epoch": 1, "step": 0, "update": 4, "skipped": 0, "skipped_in_row": 0, "samples": 16, "evaluated_at": 4}
MOMENTS = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}
OURS = {
    "model": {"weight": torch.zeros(2)},
    "optimizer": MOMENTS,
    "optimizer_name": "AdamW",
    "scaler": {},
    "counters": COUNTERS,
    "best": {"value": 81.2, "epoch": 0, "step": 0},
    "means": {"loss": [1.0, 2.0]},
    "class_names": ["cat", "dog"],
    "preprocessing": {"mean": [0.5], "std": [0.5], "crop_pct": 0.9, "interpolation": "bicubic"},
    "config": "TAG: x",
    "pretrained_windows": None,
    "versions": {"torch": "2"},
}
PATH = Path("some.pth")


def test_a_checkpoint_of_this_program_is_unchanged():
    assert checked(OURS, PATH) == OURS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("counters", [1]),
        ("counters", {**COUNTERS, "step": None}),
        ("counters", {**COUNTERS, "step": -1}),
        ("counters", {**COUNTERS, "update": 1.5}),
        ("means", None),
        ("means", {"loss": [1.0]}),
        ("class_names", 5),
        ("class_names", ["cat", 5]),
        ("optimizer", torch.zeros(2)),
        ("optimizer", {"state": {}, "param_groups": [{}]}),
        ("optimizer", {"state": {0: {"exp_avg": "x"}}, "param_groups": []}),
        ("preprocessing", {}),
        ("preprocessing", {"mean": [0.5], "std": [0.5], "crop_pct": 1e-300}),
        ("preprocessing", {"mean": [], "std": [0.5], "crop_pct": 1.0}),
        ("best", 81.2),
        ("best", {"value": "x", "epoch": 0}),
        ("scaler", 3),
        ("epoch", float("inf")),
        ("epoch", float("nan")),
        ("config", 5),
        ("versions", ["2"]),
        ("pretrained_windows", ["x"]),
        ("forms", {None: "plain"}),
        ("versions", {1: "2"}),
        ("means", {0: [1.0, 1.0]}),
        ("class_colours", [[0, 0, 256]]),
        ("class_colours", [[0, 0]]),
        ("label_values", {"x": 0}),
        ("label_values", {"0": -1}),
        ("category_ids", [1, -2]),
    ],
)
def test_malformed_metadata_are_refused_in_our_checkpoints_and_dropped_from_others(name, value):
    with raises(CheckpointError, PATH, name):
        checked({**OURS, name: value}, PATH)
    averaged = {"model", "class_names", "preprocessing", "config", "pretrained_windows", "versions"}
    if name in averaged:
        with raises(CheckpointError, PATH, name):
            checked({key: each for key, each in {**OURS, name: value}.items() if key in averaged}, PATH)
    with raises(CheckpointError, PATH, name):
        parse_notes(json.dumps({name: value if not isinstance(value, dict | torch.Tensor) else 0.5}), PATH)
    foreign = {"state_dict": OURS["model"], name: value, "epoch": 3}
    assert checked(foreign, PATH) == {"state_dict": OURS["model"], "epoch": 3}


def looped():
    value = {}
    value["x"] = [value]
    return value


def deep():
    value = []
    for _ in range(5000):
        value = [value]
    return {"x": value}


@pytest.mark.parametrize("contents", [looped, deep])
def test_nesting_is_bounded(contents):
    with raises(CheckpointError, PATH):
        checked(contents(), PATH)


def test_wide_contents_are_refused_without_listing_them():
    wide = ["x"] * 1_000_000
    with raises(CheckpointError, PATH):
        checked({"model": {}, "more": [wide] * 1_000_000}, PATH)


@pytest.mark.parametrize("text", ['{"preprocessing": {}}', '{"batch": -1}', '{"class_names": "cat"}'])
def test_notes_that_are_malformed_are_refused(text):
    with raises(CheckpointError, PATH, "corrupt"):
        parse_notes(text, PATH)


@pytest.mark.parametrize("text", ["", "tiny", "[1]", "{", "[" * 100_000])
def test_notes_of_another_program_are_ignored(text):
    assert parse_notes(text, PATH) == {}
