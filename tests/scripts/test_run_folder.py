"""Runs read from their folders."""

import json

from scripts.run_folder import Run, curve_figures, differences, summary_table
from tests.tools.errors import raises
from utils.errors import DataError


def write(folder, rate, top1):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"TAG: {folder.name}\nTRAIN: {{BASE_LR: {rate}, EPOCHS: 40}}\n")
    lines = [{"kind": "train", "update": 1, "loss": 2.5}, {"kind": "val", "update": 1, "epoch": 0, "top1": 10.0}]
    lines += [{"kind": "val", "update": 2, "epoch": 1, "top1": top1, "loss": 1.25, "train_loss": 2.25}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_a_run_is_read_and_summed_up(tmp_path):
    write(tmp_path / "tiny/a", 0.1, 50.0)
    run = Run.read(tmp_path / "tiny/a")
    assert run.name == "tiny/a" and run.config["TRAIN.BASE_LR"] == 0.1
    assert run.summary() == ["tiny/a", 2, 50.0, 1, 1.25, 2.25, "", ""]
    times = [
        {"update": update, "seconds": 30.5, "images_per_s": speed} for update, speed in ((1, 9.0), (2, 1.0), (2, 5.0))
    ]
    (tmp_path / "tiny/a/times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    assert Run.read(tmp_path / "tiny/a").summary()[-2:] == [
        "0:01:01",
        7.0,
    ]  # the evaluation after update 2 was repeated
    assert summary_table([run]).head[2] == "best top1"


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [tmp_path / write(tmp_path / folder / "tiny/a", 0.1, 1.0) for folder in ("one", "two")]
    assert [run.name for run in Run.read_all(runs)] == ["one/tiny/a", "two/tiny/a"]
    assert [run.name for run in Run.read_all([runs[0], runs[0]])] == ["tiny/a"] * 2


def test_epochs_without_validation_are_counted(tmp_path):
    write(tmp_path / "a", 0.1, 50.0)
    lines = [{"kind": "train", "update": 9, "loss": 7.0}]
    lines += [{"kind": "epoch", "update": 10 * n, "epoch": n - 1, "train_loss": 2.0 / n} for n in (1, 2)]
    (tmp_path / "a/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, epochs, best, of_epoch, loss, trained, *_ = Run.read(tmp_path / "a").summary()
    assert (epochs, of_epoch, trained) == (2, "", 1.0) and best != best and loss != loss


def test_differences_leave_names_of_runs_out(tmp_path):
    runs = [Run.read(tmp_path / write(tmp_path / name, rate, 1.0)) for name, rate in (("a", 0.1), ("b", 0.2))]
    assert differences(runs) == [["TRAIN.BASE_LR", "0.1", "0.2"]]
    assert differences(runs[:1]) == []
    for run, batch in zip(runs, (4, 8), strict=True):
        run.config.update({"DATA.BATCH_SIZE": batch, "TRAIN.WEIGHT_DECAY": batch / 100})
    assert [row[0] for row in differences(runs)] == ["TRAIN.BASE_LR", "TRAIN.WEIGHT_DECAY", "DATA.BATCH_SIZE"]


def test_intervals_that_an_epoch_cut_short_are_not_drawn(tmp_path):
    write(tmp_path / "a", 0.1, 1.0)
    lines = [{"kind": "train", "epoch": 0, "update": u, "loss": float(u)} for u in (10, 20, 23)]
    (tmp_path / "a/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses = curve_figures([Run.read(tmp_path / "a")])[0].axes[0]
    assert list(losses.lines[0].get_xdata()) == [10, 20]


def test_a_comparison_draws_the_metric_that_decides_over_epochs(tmp_path):
    runs = []
    for name, updates in (("a", 10), ("b", 10), ("c", 20)):
        write(tmp_path / name, 0.1, 1.0)
        lines = [{"kind": "train", "epoch": e, "step": updates, "update": updates * (e + 1), "lr": 0.1} for e in (0, 1)]
        lines += [{"kind": "val", "epoch": 0, "update": updates, "top1": 50.0, "macro_f1": 40.0}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(Run.read(tmp_path / name))
    assert [run.updates_per_epoch for run in runs] == [10, 10, 20]
    found = [[figure.axes[0] for figure in curve_figures(several)] for several in (runs[:1], runs[:2], runs)]
    assert [len(judged.lines) for judged, _ in found] == [2, 2, 3]  # top-1 and F1, then top-1 of each
    assert {judged.get_title() for judged, _ in found} == {"validation accuracy, %"}
    assert [judged.get_xlabel().split()[0] for judged, _ in found] == ["epochs", "epochs", "updates"]


def test_other_folders_are_rejected(tmp_path):
    with raises(DataError, tmp_path, "No such file", "output/"):
        Run.read(tmp_path)
