"""The picture of a run."""

import errno
import json
import os

import pytest
from PIL import Image

from tasks.classification.task import Classification
from utils.logs import curves
from utils.logs.curves import Curves, Plotted, curves_figure, draw_curves, metric_names, panel_figures, whole_intervals
from utils.training.objective import Best

TRAIN = [{"kind": "train", "update": u, "loss": 3.0 / u, "lr": 0.1} for u in range(1, 9)]


@pytest.mark.parametrize(
    ("val", "best"),
    [
        ([{"kind": "val", "update": 8, "loss": None, "top1": 50.0, "topk": 90.0, "k": 5}], Classification.best),
        ([{"kind": "val", "update": 8, "distance": 0.5}], Best("distance")),
        ([{"kind": "val", "update": 8, "top1": 0.5}], Best("top1")),
        ([{"kind": "epoch", "update": 8, "train_loss": 0.5}], None),
        ([], Classification.best),
    ],
    ids=["accuracy", "another metric", "another top1", "no evaluation", "nothing yet"],
)
def test_any_run_can_be_drawn(tmp_path, val, best):
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in [*TRAIN, *val]))
    draw_curves(metrics, picture, 4, best)
    with Image.open(picture) as image:
        assert image.size[0] > 800 and len(image.convert("L").getcolors()) > 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_metrics_are_known_by_their_records():
    val = {"kind": "val", "epoch": 0, "update": 8, "train_loss": 1.5, "loss": 1.25, "count": 360}
    assert metric_names([*TRAIN, {**val, "top1": None}, {**val, "top1": 20.0, "iou": 0.5}]) == ["top1", "iou"]
    assert metric_names([*TRAIN, val]) == ["loss"] == metric_names(TRAIN)


def test_several_runs_are_told_apart_by_colour_and_their_metrics_by_style():
    val = [{"kind": "val", "update": u, "loss": 1.0, "iou": 0.5, "recall": 0.25} for u in (4, 8)]
    losses, judged, rate, norm = curves_figure(Plotted([("a", [*TRAIN, *val]), ("b", TRAIN)])).axes
    assert [line.get_label() for line in losses.lines] == ["a, training", "a, validation", "b, training"]
    assert [(line.get_label(), line.get_color(), line.get_linestyle()) for line in judged.lines] == [
        ("a, iou", "C0", "-"),
        ("a, recall", "C0", "--"),
    ]
    assert judged.get_title() == "validation iou, recall" and norm.get_xlabel() == "updates"
    assert [line.get_color() for line in rate.lines] == ["C0", "C1"] and not norm.lines


def test_the_axis_counts_epochs_as_the_log_does():
    """The log's epoch 0 ends at 1, where its evaluation stands."""
    val = [{"kind": "val", "update": 4, "epoch": 0, "top1": 50.0}]
    figure = curves_figure(Plotted([("", [*TRAIN, *val])], ["top1"], updates_per_epoch=4))
    _, judged, _, norm = figure.axes
    assert list(judged.lines[0].get_xdata()) == [1.0] and "epoch 0 ends at 1" in norm.get_xlabel()


def test_panels_of_their_own_leave_out_what_has_no_values():
    (losses,), (rate,) = (figure.axes for figure in panel_figures(Plotted([("", TRAIN)], ["top1"])))
    assert (losses.get_title(), rate.get_title()) == ("loss", "learning rate")
    assert losses.get_xlabel() == rate.get_xlabel() == "updates"


@pytest.mark.parametrize("lines", ["", '{"kind": "train"}\n', '{"kind"', "null\n"])
def test_lines_that_cannot_be_drawn_are_a_warning_at_most(tmp_path, caplog, lines):
    (tmp_path / "metrics.jsonl").write_text(lines)
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", 4, Classification.best)
    assert (tmp_path / "curves.png").exists() != bool(caplog.records)
    assert all("cannot draw" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_picture_that_cannot_be_written_is_a_warning_and_the_old_one_stays(tmp_path, caplog, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in TRAIN))
    (tmp_path / "curves.png").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", 4, None)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"cannot draw {tmp_path}/curves.png (") and os.strerror(number) in message
    assert (tmp_path / "curves.png").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_intervals_that_the_end_of_an_epoch_cut_short_are_left_out():
    records = [{"update": update} for update in (10, 20, 23, 33, 43, 46)]
    assert [record["update"] for record in whole_intervals(records)] == [10, 20, 33, 43]
    assert whole_intervals([]) == [] and len(whole_intervals([{"update": 3}, {"update": 6}])) == 2


def test_the_curves_of_short_epochs_are_drawn_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    """Drawing takes 2 seconds here, so that 50 times as long must pass before the next; the first comes after 30."""
    now, drawn = [100.0], []

    def draw(*arguments):
        drawn.append(now[0])
        now[0] += 2

    monkeypatch.setattr(curves, "draw_curves", draw)
    monkeypatch.setattr(curves.time, "monotonic", lambda: now[0])
    (tmp_path / "metrics.jsonl").touch()
    run = Curves(tmp_path, 4, None)
    for _ in range(30):
        now[0] += 10
        run.after_epoch()
    run.finish()
    run.finish()
    assert drawn == [130, 232, 334, 406]
