"""Class names in files of any program, and that a resumed run has the same."""

import pytest

from tasks.named_classes import NamedClasses, stored_names, with_names
from tests.tools.errors import raises
from utils.errors import CheckpointError


@pytest.mark.parametrize(
    "contents",
    [
        {"class_names": ["x", "y"]},
        {"meta": {"CLASSES": ("x", "y")}},
        {"meta": {"dataset_meta": {"classes": ["x", "y"]}}},
    ],
    ids=["ours", "0.x", "1.x"],
)
def test_names_are_read_from_any_program(contents):
    assert stored_names(contents, 2) == ("x", "y")
    assert stored_names(contents, 3) == ("class 0", "class 1", "class 2")


def test_names_are_put_where_this_program_stores_them():
    assert with_names({"meta": {"CLASSES": ("x", "y")}})["class_names"] == ["x", "y"]
    assert with_names({"class_names": ["a"]}) == {"class_names": ["a"]} and with_names({"meta": 3}) == {"meta": 3}


@pytest.mark.parametrize("meta", [None, 3, {"CLASSES": 2}, {"classes": [1, 2]}, {"dataset_meta": {"classes": "ab"}}])
def test_malformed_names_are_not_used(meta):
    assert stored_names({"meta": meta}, 2) == ("class 0", "class 1")


def test_a_resumed_run_needs_the_same_classes(tmp_path):
    info = NamedClasses("x", ("a", "b"))
    assert info.as_dict() == {"class_names": ["a", "b"], "data_fingerprint": "x"}
    info.check(info.as_dict(), tmp_path, False)
    with raises(CheckpointError, tmp_path, "class 1 is c", "2 classes"):
        info.check({"class_names": ["a", "c"]}, tmp_path, True)
