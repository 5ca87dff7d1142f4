"""The summary in timm's names."""

import csv
import json

import pytest

from utils.logs.summary import write_summary


def test_the_summary_has_timms_names(tmp_path):
    lines = [
        {"kind": "train", "update": 2, "lr": 0.1, "loss": 2.0},
        {"kind": "val", "epoch": 0, "update": 2, "train_loss": 2.0, "loss": 1.5, "top1": 50.0, "topk": 90.0, "k": 5},
        {"kind": "train", "update": 4, "lr": 0.2, "loss": 1.0},
        {"kind": "val", "epoch": 1, "update": 4, "train_loss": 1.0, "loss": None, "top1": 60.0, "topk": 95.0, "k": 5},
    ]
    metrics, summary = tmp_path / "metrics.jsonl", tmp_path / "summary.csv"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "times.jsonl").write_text('{"update": 2, "seconds": 1.5, "images_per_s": 20.0}\nbroken\n')
    write_summary(metrics, summary)
    first, second = csv.DictReader(summary.open())
    assert first == {
        "epoch": "0",
        "train_loss": "2.0",
        "lr": "0.1",
        "eval_loss": "1.5",
        "eval_top1": "50.0",
        "eval_top5": "90.0",
        "seconds": "1.5",
        "images_per_s": "20.0",
    }
    assert (second["lr"], second["eval_loss"], second["eval_top1"], second["seconds"]) == ("0.2", "", "60.0", "")


@pytest.mark.parametrize(
    ("text", "warns"), [("", False), ("null\n", False), ('{"kind": "val", "update": 1}\n', True), (None, True)]
)
def test_a_summary_that_cannot_be_written_is_a_warning_at_most(tmp_path, caplog, text, warns):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    write_summary(tmp_path / "metrics.jsonl", tmp_path / "summary.csv")
    assert all("training continues" in message for message in caplog.messages)
    assert bool(caplog.messages) == warns
