"""Reports beyond top-1 and top-5, counted by hand."""

import csv
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from models.weights.class_maps import class_names_of, real_labels
from utils.distributed import World
from utils.errors import ResourceError
from utils.evaluation.reports import assess, real_accuracy, report, write_per_class, write_tables
from utils.precision import choose_precision

FLOAT32 = choose_precision(torch.device("cpu"), False, "auto")


@dataclass
class Samples:
    labels: list
    class_names: tuple = ("a", "b", "c", "d")

    def __len__(self):
        return len(self.labels)

    def label(self, index):
        return self.labels[index]

    def name(self, index):
        return f"val/x/ILSVRC2012_val_{index + 1:08d}.JPEG"


class Echo(nn.Module):
    """Logits are the input itself."""

    def forward(self, images):
        return images[:, :, 0, 0]


LOGITS = torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4], [1, 4, 3, 2], [0, 1, 3, 2], [9, 0, 0, 1]])
LABELS = [0, 0, 1, 3, 3]


def run(allowed=()):
    batches = [(LOGITS[i : i + 2, :, None, None], torch.tensor(LABELS[i : i + 2])) for i in (0, 2, 4)]
    return assess(Echo(), batches, Samples(LABELS), allowed, FLOAT32, World())


def test_predictions_stand_in_the_order_of_the_samples():
    done = run()
    assert done.predicted == [0, 3, 1, 2, 0] and done.result.correct1 == 2 and done.parameters == 0
    assert "Acc@1 40.000 Acc@4 100.000" in report(done, Samples(LABELS), None)[0]


def test_classes_that_are_not_allowed_cannot_win():
    done = run(allowed=[0, 1, 3])
    assert done.predicted == [0, 3, 1, 3, 0] and done.result.correct1 == 3 and done.result.k == 3


def test_real_labels_allow_several_answers_and_skip_images_without_any():
    names = [Samples(LABELS).name(i) for i in range(5)]
    real = {
        "ILSVRC2012_val_00000001.JPEG": [1, 0],
        "ILSVRC2012_val_00000002.JPEG": [],
        "ILSVRC2012_val_00000003.JPEG": [2],
    }
    assert real_accuracy(run().predicted, names, real) == " * ReaL Acc@1 50.000 (1 of 2)"
    assert "none of the files" in real_accuracy([1], ["photo.jpg"], real)
    own = real_labels()
    assert len(own) == 50_000 and sum(not labels for labels in own.values()) == 3_163  # arXiv 2006.07159: 46,837 remain


def test_tables(tmp_path):
    write_tables(
        [("a.pth", run()), ("b.pth", run([0, 1]))], Samples(LABELS), str(tmp_path / "r.csv"), str(tmp_path / "c.csv")
    )
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert {(r["size"], r["parameters"]) for r in rows} == {("1", "0")}
    assert [(r["name"], r["top1"], r["k"], r["samples"]) for r in rows] == [
        ("a.pth", "40.000", "4", "5"),
        ("b.pth", "40.000", "2", "5"),
    ]
    write_per_class(tmp_path / "c.csv", run().predicted, LABELS, Samples(LABELS).class_names)
    rows = list(csv.reader((tmp_path / "c.csv").open()))
    assert rows[1:] == [
        ["a", "2", "1", "50.00", "d"],
        ["b", "1", "1", "100.00", ""],
        ["d", "2", "0", "0.00", rows[3][4]],
    ]
    with pytest.raises(ResourceError, match="cannot write a table"):
        write_tables([("a.pth", run())], Samples(LABELS), str(tmp_path / "r.csv" / "x"), "")


def test_a_released_head_without_class_names_is_read_as_imagenet():
    assert class_names_of({"model": {"head.weight": torch.zeros(5, 2)}})["usual_names"] is None
    for classes in (1000, 21841):
        names = class_names_of({"model": {"head.weight": torch.zeros(classes, 2)}})["usual_names"]
        assert names[:2] == ["n01440764", "n01443537"] and len(names) == 1000
    assert class_names_of({"model": {}, "class_names": ["x"]})["class_names"] == ["x"]
