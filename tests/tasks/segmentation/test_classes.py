"""The class of every value, decided from the values found, the names and the layout."""

import pytest

from data.pipeline.label_maps import IGNORED, LabelCoding, code_of
from data.sources.class_tables import ClassTable
from data.sources.pairs import PairStore
from tasks.segmentation.classes import CodingOptions, SegmentationInfo, decide, read_classes, stored_classes
from tests.data.pipeline.test_label_maps import EIGHT, encoded
from tests.tools.errors import raises
from utils.errors import CheckpointError, DataError

THREE = ClassTable(("a", "b", "c"), (), "classes.txt")
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
        ([0, 1, 11], ClassTable(), CodingOptions(ignore=11), {0: 0, 1: 1, 11: IGNORED, 255: IGNORED}),
        ([0, 255], ClassTable(), CodingOptions(), {0: 0, 255: 1}),
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


def dataset(root, classes=""):
    for folder, data in (("images", encoded(EIGHT)), ("labels", encoded(EIGHT % 3))):
        (root / folder / "train").mkdir(parents=True)
        (root / folder / "train/a.png").write_bytes(data)
    return PairStore(root).open("train")


def test_the_histogram_is_logged_before_anything_is_decided(tmp_path, caplog):
    caplog.set_level("INFO")
    info = read_classes(dataset(tmp_path), THREE, CodingOptions())
    assert "0 66.7%, 1 33.3%" in caplog.text or "0 50%" in caplog.text
    assert info.class_names == ("a", "b", "c") and len(info.colours) == 3 and info.fingerprint


def test_a_class_without_pixels_is_named(tmp_path, caplog):
    read_classes(dataset(tmp_path), ClassTable(("a", "b", "c", "zebra"), (), "x"), CodingOptions())
    assert "zebra" in caplog.text


def test_classes_are_stored_and_read_back():
    coding = LabelCoding({0: IGNORED, 1: 0, 2: 1})
    info = SegmentationInfo("x", ("a", "b"), ((1, 2, 3), (4, 5, 6)), coding)
    read = stored_classes(info.as_dict(), 2)
    assert (read.class_names, read.colours, read.coding.classes) == (info.class_names, info.colours, coding.classes)


PALETTE = [[1, 1, 1], [2, 2, 2]]
GENERATIONS = {
    "0.x": {"CLASSES": ("x", "y"), "PALETTE": PALETTE},
    "1.x": {"dataset_meta": {"classes": ["x", "y"], "palette": PALETTE}},
}


@pytest.mark.parametrize("meta", GENERATIONS.values(), ids=GENERATIONS)
def test_classes_of_mmsegmentation_are_read(meta):
    info = stored_classes({"meta": meta}, 2)
    assert info.class_names == ("x", "y") and info.colours == ((1, 1, 1), (2, 2, 2))
    assert stored_classes({"meta": meta}, 3).class_names == ("class 0", "class 1", "class 2")
    assert stored_classes({}, 2).class_names == ("class 0", "class 1")


def test_a_resumed_run_needs_the_same_classes(tmp_path):
    info = SegmentationInfo("x", ("a", "b"))
    info.check({"class_names": ["a", "b"], "data_fingerprint": "x"}, tmp_path, False)
    with raises(CheckpointError, tmp_path, "class 1 is c"):
        info.check({"class_names": ["a", "c"]}, tmp_path, False)
