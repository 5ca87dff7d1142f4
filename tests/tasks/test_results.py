"""The tables of --eval."""

import csv
import json

import numpy as np
from pyarrow import parquet

from tasks.results import Result, write_arrays, write_tables
from tests.tools.errors import raises
from utils.errors import ConfigError, ResourceError
from utils.training.objective import Evaluation, Table


def result(name, top1, size=(224, 224), **more):
    return Result(name, Evaluation({"top1": top1, "loss": 0.5}, "line", samples=50, **more), 12.34, 1000, size)


def rows(path):
    return list(csv.reader(path.open()))


def test_results_have_a_row_per_file_with_its_metrics_speed_and_size(tmp_path):
    write_tables([result("a.pth", 81.25), result("b.pth", 79.0, (224, 320))], str(tmp_path / "new/r.csv"), "")
    head, first, second = rows(tmp_path / "new/r.csv")
    assert head == ["name", "top1", "loss", "samples", "images_per_s", "parameters", "size"]
    assert first == ["a.pth", "81.25", "0.5", "50", "12.3", "1000", "224"] and second[-1] == "224x320"


def test_a_task_may_have_rows_of_its_own(tmp_path):
    own = Table(("labels", "top1"), [["own", "81.2"], ["real", "86.6"]])
    write_tables([result("a.pth", 81.2, tables={"results": own})], str(tmp_path / "r.csv"), "")
    assert [row[:3] for row in rows(tmp_path / "r.csv")] == [
        ["name", "labels", "top1"],
        ["a.pth", "own", "81.2"],
        ["a.pth", "real", "86.6"],
    ]


def test_metrics_per_class_are_those_of_the_last_file(tmp_path):
    tables = [{"per_class": Table(("class", "top1"), [["cat", value]])} for value in ("1", "2")]
    write_tables([result("x", 0, tables=each) for each in tables], "", str(tmp_path / "c.csv"))
    assert rows(tmp_path / "c.csv") == [["class", "top1"], ["cat", "2"]]


def test_metrics_per_class_of_a_task_without_classes_are_rejected(tmp_path):
    with raises(ConfigError, "TEST.PER_CLASS"):
        write_tables([result("x", 0)], "", str(tmp_path / "c.csv"))
    assert not (tmp_path / "c.csv").exists()


def test_a_table_that_cannot_be_written_names_the_file_and_the_key(tmp_path):
    (tmp_path / "file").touch()
    with raises(ResourceError, tmp_path / "file/r.csv", "TEST.RESULTS"):
        write_tables([result("x", 0)], str(tmp_path / "file/r.csv"), "")


def test_probabilities_are_written_for_other_programs(tmp_path):
    arrays = {"path": ["a.jpg", "b.jpg"], "label": np.array([1, 0]), "class_names": ["cat", "日本"]}
    arrays["probabilities"] = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    write_arrays(tmp_path / "p.npz", arrays)
    with np.load(tmp_path / "p.npz") as read:
        assert all(np.array_equal(read[name], np.array(arrays[name])) for name in arrays)
    write_arrays(tmp_path / "p.parquet", arrays)
    table = parquet.read_table(tmp_path / "p.parquet")
    assert table["probabilities"].to_pylist() == arrays["probabilities"].tolist() and table["label"].to_pylist() == [
        1,
        0,
    ]
    assert json.loads(table.schema.metadata[b"class_names"]) == arrays["class_names"]
    with raises(ConfigError, "TEST.PROBABILITIES", "keeps no"):
        write_arrays(tmp_path / "p.npz", {})
