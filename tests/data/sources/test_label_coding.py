"""The class of every value, decided from the values found, the names and the layout."""

from pathlib import Path

import pytest
from PIL import Image

from data.pipeline.label_maps import IGNORED, code_of
from data.sources.class_tables import ClassTable
from data.sources.label_coding import CodingOptions, count_values, decide
from data.sources.pairs import PairStore
from tests.tools.errors import raises
from utils.errors import DataError

THREE = ClassTable(("a", "b", "c"), (), "classes.txt")
ADE20K = ClassTable(THREE.names, (), "folder/objectInfo150.txt")
COLOURS = ClassTable(("a", "b"), ((9, 0, 0), (255, 255, 255)), "classes.txt")


@pytest.mark.parametrize(
    ("values", "table", "options", "expected"),
    [
        ([0, 1, 2, 255], ClassTable(), CodingOptions(), {0: 0, 1: 1, 2: 2, 255: IGNORED}),
        ([0, 1, 255], THREE, CodingOptions(), {0: 0, 1: 1, 2: 2, 255: IGNORED}),
        ([0, 1, 3], THREE, CodingOptions("ade20k"), {0: IGNORED, 1: 0, 2: 1, 3: 2, 255: IGNORED}),
        ([0, 1, 3], THREE, CodingOptions(reduce_zero=True), {0: IGNORED, 1: 0, 2: 1, 3: 2, 255: IGNORED}),
        ([0, 1, 3], THREE, CodingOptions(ignore=3), {0: 0, 1: 1, 2: 2, 3: IGNORED, 255: IGNORED}),
        ([0, 1, 2], ClassTable(), CodingOptions(reduce_zero=True), {0: IGNORED, 1: 0, 2: 1, 255: IGNORED}),
        ([0, 1, 2], ClassTable(), CodingOptions(ignore=0), {0: IGNORED, 1: 0, 2: 1, 255: IGNORED}),
        ([0, 1, 2], ClassTable(), CodingOptions(ignore=1), {0: 0, 1: IGNORED, 2: 1, 255: IGNORED}),
        ([0, 1, 2], ClassTable(), CodingOptions("ade20k"), {0: IGNORED, 1: 0, 2: 1, 255: IGNORED}),
        ([0, 1], ADE20K, CodingOptions("ade20k"), {0: IGNORED, 1: 0, 2: 1, 3: 2, 255: IGNORED}),
        ([0, 2], THREE, CodingOptions("ade20k", False), {0: 0, 1: 1, 2: 2, 255: IGNORED}),
        ([0, 1, 11], ClassTable(), CodingOptions(ignore=11), {0: 0, 1: 1, 11: IGNORED, 255: IGNORED}),
        ([0, 255], ClassTable(), CodingOptions(), {0: 0, 255: 1}),
        ([0, 1], COLOURS, CodingOptions(), {0: 0, 1: 1, 255: IGNORED}),
        ([255, code_of((9, 0, 0))], COLOURS, CodingOptions(), {code_of((9, 0, 0)): 0, 255: 1}),
    ],
)
def test_values_get_their_classes(values, table, options, expected):
    assert decide(values, table, options)[0].classes == expected


@pytest.mark.parametrize(
    ("values", "table", "subject", "named"),
    [
        ([0, 3], THREE, "DATA.REDUCE_ZERO_LABEL", "IGNORE_LABEL 3"),
        ([0, 7], THREE, "DATA.IGNORE_LABEL", "7"),
        ([0, code_of((9, 0, 0))], ClassTable(), "DATA.CLASSES", "9,0,0"),
        ([0, code_of((8, 0, 0))], COLOURS, "DATA.IGNORE_LABEL", "8,0,0"),
        ([300], ClassTable(), "DATA.DATA_PATH", "300 classes"),
        ([255], ClassTable(), "DATA.DATA_PATH", "0 classes"),
    ],
)
def test_what_cannot_be_decided_is_asked(values, table, subject, named):
    with raises(DataError, subject, named):
        decide(values, table, CodingOptions())


def test_cityscapes_label_ids_become_its_19_classes():
    coding, _ = decide([0, 7, 33], ClassTable(), CodingOptions("cityscapes_ids"))
    assert (coding.classes[7], coding.classes[33], coding.classes[0]) == (0, 18, IGNORED)


@pytest.mark.parametrize("values", [[0, 1, 2, 255], [1, 2]])
def test_own_data_in_ade20ks_folders_must_say_whether_0_has_a_class(values):
    with raises(DataError, "DATA.REDUCE_ZERO_LABEL", "3 classes", "true", "false"):
        decide(values, THREE, CodingOptions("ade20k"))


@pytest.fixture
def source(tmp_path):
    for i in range(3):
        for folder, value in (("images", 0), ("labels", i)):
            path = tmp_path / folder / "train" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (3, 2), value).save(path)
    return PairStore(tmp_path).open("train")


def test_values_are_counted_once_until_a_map_changes(source, monkeypatch):
    assert count_values(source) == {0: 6, 1: 6, 2: 6} and count_values(source, 2) == {0: 6, 2: 6}
    with monkeypatch.context() as patched:
        patched.setattr("data.sources.label_coding.read_label_map", None)
        assert count_values(source) == {0: 6, 1: 6, 2: 6}
    Image.new("L", (4, 2), 9).save(source.label_name(1))
    assert count_values(source) == {0: 6, 9: 8, 2: 6}


def test_a_map_that_cannot_be_read_is_named(source):
    Path(source.label_name(1)).write_bytes(b"text")
    with raises(DataError, source.label_name(1)):
        count_values(source)
    Path(source.label_name(1)).unlink()
    with raises(DataError, source.label_name(1)):
        count_values(source)
