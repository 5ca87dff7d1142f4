"""Reports beyond top-1 and top-5, counted by hand."""

import csv
from dataclasses import replace

import pytest
import torch
from timm.data import ImageNetInfo
from torch import nn

from models.weights.class_maps import real_labels
from tests.tools.builders import FLOAT32
from utils.distributed.world import World
from utils.errors import ConfigError, ResourceError
from utils.evaluation.reports import Evaluated, ReportOptions, assess, real_accuracy, report, write_per_class


def file_name(i):
    return f"val/x/ILSVRC2012_val_{i + 1:08d}.JPEG"


class Echo(nn.Module):
    """Logits are the input itself."""

    def forward(self, images):
        return images[:, :, 0, 0]


LOGITS = torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4], [1, 4, 3, 2], [0, 1, 3, 2], [9, 0, 0, 1]])
LABELS = [0, 0, 1, 3, 3]
SAMPLES = Evaluated(("a", "b", "c", "d"), file_name, (1, 1))
NO_TABLES = ReportOptions((), "", False, "", "")


def run(allowed=()):
    batches = [(LOGITS[i : i + 2, :, None, None], torch.tensor(LABELS[i : i + 2])) for i in (0, 2, 4)]
    return assess(Echo(), batches, SAMPLES, allowed=allowed, precision=FLOAT32, world=World())


def test_predictions_stand_in_the_order_of_the_samples():
    done = run()
    assert done.answers.predicted.tolist() == [0, 3, 1, 2, 0] and done.accuracy.correct1 == 2 and done.parameters == 0
    assert "Acc@1 40.000 Acc@4 100.000" in done.line()


def test_classes_that_are_not_allowed_cannot_win():
    done = run(allowed=[0, 1, 3])
    assert done.answers.predicted.tolist() == [0, 3, 1, 3, 0] and done.accuracy.correct1 == 3 and done.accuracy.k == 3


def test_real_labels_allow_several_answers_and_skip_images_without_any():
    real = {file_name(0).split("/")[-1]: [1, 0], file_name(1).split("/")[-1]: [], file_name(2).split("/")[-1]: [2]}
    assert real_accuracy(run().answers, SAMPLES, real) == "ReaL Acc@1 50.000 (1 of 2)"
    others = Evaluated(("a", "b"), lambda i: "photo.jpg", (1, 1))
    assert "none of the files" in real_accuracy(run().answers, others, real)


def test_real_labels_follow_the_class_names_of_the_head():
    synsets = ImageNetInfo("imagenet-1k").label_names()
    whole = real_labels(synsets)
    assert len(whole) == 50_000 and sum(not labels for labels in whole.values()) == 3_163  # arXiv 2006.07159
    ten = list(reversed(synsets[:10]))
    some = real_labels(ten)
    for name in list(whole)[:2000]:
        assert some[name] == [9 - label for label in whole[name] if label < 10]
    with pytest.raises(ConfigError, match=r"no labels for these classes: class_0: TEST.REAL"):
        real_labels(["class_0", *synsets[1:10]])


def test_tables(tmp_path):
    options = ReportOptions((), "", False, str(tmp_path / "c.csv"), str(tmp_path / "r.csv"))
    report([("a.pth", run()), ("b.pth", run([0, 1]))], SAMPLES, options, None, World())
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert {(r["size"], r["parameters"]) for r in rows} == {("1", "0")}
    assert [(r["name"], r["top1"], r["k"], r["samples"]) for r in rows] == [
        ("a.pth", "40.000", "4", "5"),
        ("b.pth", "40.000", "2", "5"),
    ]
    write_per_class(tmp_path / "c.csv", run().answers, SAMPLES.class_names)
    rows = list(csv.reader((tmp_path / "c.csv").open()))
    assert rows[1:] == [
        ["a", "2", "1", "50.00", "d"],
        ["b", "1", "1", "100.00", ""],
        ["d", "2", "0", "0.00", rows[3][4]],
    ]
    with pytest.raises(ResourceError, match="cannot write a table"):
        report([("a.pth", run())], SAMPLES, replace(options, results=str(tmp_path / "r.csv/x")), None, World())
    (tmp_path / "r.csv").unlink()
    report([("a.pth", run())], SAMPLES, options, None, World(1, 2))  # other ranks write nothing
    assert not (tmp_path / "r.csv").exists()


def test_the_log_has_a_line_per_accuracy(caplog):
    with caplog.at_level("INFO"):
        report([("a.pth", run())], SAMPLES, NO_TABLES, {file_name(0).split("/")[-1]: [0]}, World())
    assert "Acc@1 40.000 Acc@4 100.000" in caplog.text and "ReaL Acc@1 100.000 (1 of 1)" in caplog.text
