"""Names, colours and coding of a dataset, and of files."""

import numpy as np
import pytest

from data.pipeline.label_maps import IGNORED, LabelCoding
from data.sources.class_tables import ClassTable
from data.sources.label_coding import CodingOptions
from data.sources.pairs import PairStore
from tasks.segmentation.classes import SegmentationInfo, read_classes, stored_classes
from tests.data.pipeline.test_label_maps import EIGHT, encoded
from tests.tools.errors import raises
from utils.errors import CheckpointError

THREE = ClassTable(("a", "b", "c"), (), "classes.txt")


def dataset(root, classes=""):
    for folder, data in (("images", encoded(EIGHT)), ("labels", encoded(EIGHT % 3))):
        (root / folder / "train").mkdir(parents=True)
        (root / folder / "train/a.png").write_bytes(data)
    return PairStore(root).open("train")


def test_the_histogram_is_logged_before_anything_is_decided(tmp_path, caplog):
    caplog.set_level("INFO")
    info = read_classes([dataset(tmp_path)], THREE, CodingOptions())
    assert "0 66.7%, 1 33.3%" in caplog.text or "0 50%" in caplog.text
    assert info.class_names == ("a", "b", "c") and len(info.colours) == 3 and info.fingerprint


def test_a_class_without_pixels_is_named(tmp_path, caplog):
    read_classes([dataset(tmp_path)], ClassTable(("a", "b", "c", "zebra"), (), "x"), CodingOptions())
    assert "zebra" in caplog.text


def test_values_of_every_split_are_counted(tmp_path):
    train = dataset(tmp_path)
    for folder in ("images", "labels"):
        (tmp_path / folder / "val").mkdir()
        (tmp_path / folder / "val/a.png").write_bytes(encoded(np.full((2, 3), 3, np.uint8)))
    val = PairStore(tmp_path).open("val")
    info = read_classes([train, val], ClassTable(), CodingOptions())
    assert info.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert info.fingerprint == train.fingerprint()


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


@pytest.mark.parametrize("meta", [{"CLASSES": 2, "PALETTE": 2}, {"classes": [1, 2], "palette": ["red", "blue"]}])
def test_malformed_classes_of_mmsegmentation_are_not_used(meta):
    info = stored_classes({"meta": meta}, 2)
    assert info.class_names == ("class 0", "class 1") and len(info.colours) == 2


def test_a_resumed_run_needs_the_same_classes(tmp_path):
    info = SegmentationInfo("x", ("a", "b"))
    info.check({"class_names": ["a", "b"], "data_fingerprint": "x"}, tmp_path, False)
    with raises(CheckpointError, tmp_path, "class 1 is c"):
        info.check({"class_names": ["a", "c"]}, tmp_path, False)
