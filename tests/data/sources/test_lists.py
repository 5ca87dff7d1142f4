"""Lists of images: odd ones are read correctly, malformed ones are refused with file and line."""

import json
import os
import shutil

import pytest

from data.sources.lists import ListStore, read_list
from tests.data.sources.storages import ESCAPING, SPLITS
from tests.tools.builders import labels_of, open_data
from tests.tools.errors import raises
from tests.tools.memory import memory_bounded
from utils.errors import DataError

LINES = {
    "crlf": b"a b/x.jpg\t0\r\nc/y.jpg\t1\r\n",
    "bom": b"\xef\xbb\xbfa b/x.jpg\t0\nc/y.jpg\t1\n",
    "blank": b"\na b/x.jpg\t0\n\n   \nc/y.jpg\t1",
    "json": b'[["a b/x.jpg", 0], ["c/y.jpg", 1]]',
}


@pytest.mark.parametrize("text", LINES.values(), ids=LINES)
def test_fault_45_odd_lists_are_read_right(photos, tmp_path, text):
    for name in ("a b/x.jpg", "c/y.jpg"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(photos / "train/class_0/photo_0.jpg", tmp_path / name)
    for split in SPLITS:
        (tmp_path / f"{split}_map.txt").write_bytes(text)
    source = open_data("list", str(tmp_path)).train
    assert source.class_names == ("a b", "c") and labels_of(source) == [0, 1]
    assert source[0].data[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("lines", "position", "value"),
    [
        ("a/x.jpg\t0\na/y.jpg\t7\n", ":2", "label 7 is not in 0 to 2"),
        ("a/x.jpg\t-1\n", ":1", "label -1"),
        ("a/x.jpg\tdog\n", ":1", "dog"),
        ("a/x.jpg\n", ":1", "'a/x.jpg'"),
        ("", "", "empty"),
        ('[["a.jpg"]]', "[0]", "['a.jpg']"),
        ("[1, 2", "", "JSON"),
        ("[" * 100_000, "", "JSON"),
        ('[["\\ud800.jpg", 0]]', "[0]", "ud800"),
    ],
)
def test_fault_45_malformed_lists_are_refused_with_the_line(tmp_path, lines, position, value):
    (tmp_path / "train_map.txt").write_text(lines)
    with raises(DataError, f"{tmp_path}/train_map.txt{position}", value):
        ListStore(tmp_path).open("train", None, classes=3)


def test_a_negative_label_is_refused_without_a_number_of_classes(tmp_path):
    (tmp_path / "train_map.txt").write_text("a/x.jpg\t-1\n")
    with raises(DataError, f"{tmp_path}/train_map.txt:1", "label -1 is negative"):
        ListStore(tmp_path).open("train")


@pytest.mark.parametrize("label", ["1000000000", "9" * 4000])
def test_fault_45_a_huge_label_is_refused_before_it_takes_memory(tmp_path, label):
    (tmp_path / "train_map.txt").write_text(f"a/x.jpg\t21840\nb/y.jpg\t{label}\n")
    with (
        memory_bounded(20),
        raises(DataError, f"{tmp_path}/train_map.txt:2", f"label {label[:40]} is", "NUM_CLASSES") as caught,
    ):
        ListStore(tmp_path).open("train")
    assert len(str(caught.value)) < 300
    (tmp_path / "train_map.txt").write_text("a/x.jpg\t21840\n")  # a few images of many classes
    assert len(ListStore(tmp_path).open("train").class_names) == 21841


@pytest.mark.parametrize("name", ESCAPING)
def test_fault_46_paths_out_of_the_root_are_refused_in_a_list(tmp_path, name):
    (tmp_path / "train_map.txt").write_text(f"{name}\t0\n")
    with raises(DataError, f"{tmp_path}/train_map.txt:1", repr(name)):
        ListStore(tmp_path).open("train")


def test_fault_46_a_link_out_of_the_root_is_never_opened(tmp_path):
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "trap")  # opening it would wait forever
    (data / "a/x.jpg").symlink_to("../../trap")
    (data / "train_map.txt").write_text("a/x.jpg\t0\n")
    source = ListStore(data).open("train")
    with raises(DataError, data / "a/x.jpg", "link"):
        _ = source[0]


def test_a_link_in_the_data_folder_itself_is_followed(photos, tmp_path):
    """As ImageNet-22K is usually laid out: fall11_whole is a link to another disk."""
    elsewhere, data = tmp_path / "disk", tmp_path / "data"
    shutil.copytree(photos / "train", elsewhere)
    (elsewhere / "class_0/link.jpg").symlink_to("../class_1/photo_1.jpg")
    data.mkdir()
    (data / "fall11_whole").symlink_to(elsewhere)
    entries = [["fall11_whole/class_0/photo_0.jpg", 0], ["fall11_whole/class_0/link.jpg", 0]]
    for split in SPLITS:
        (data / f"ILSVRC2011fall_whole_map_{split}.txt").write_text(json.dumps(entries))
    source = open_data("imagenet22K", str(data)).train
    assert {source[i].data for i in range(2)} == {
        (elsewhere / name).read_bytes() for name in ("class_0/photo_0.jpg", "class_1/photo_1.jpg")
    }


@pytest.mark.parametrize(
    ("lines", "classes", "names"),
    [
        ("a/x.jpg\t0\nb/y.jpg\t2\n", 0, ["a", "1", "b"]),  # no image of label 1
        ("a/x.jpg\t0\nb/y.jpg\t0\n", 0, ["0"]),  # two folders of one label
        ("a/x.jpg\t0\na/y.jpg\t1\n", 3, ["0", "1", "2"]),  # one folder of two labels
        ("x.jpg\t0\n", 2, ["0", "1"]),  # no folder
    ],
)
def test_classes_are_named_after_the_folders_where_each_has_its_own(tmp_path, lines, classes, names):
    (tmp_path / "train_map.txt").write_text(lines)
    assert read_list(tmp_path / "train_map.txt", classes, None).class_names == names


def test_folders_decide_where_the_class_map_has_another_order(tmp_path, caplog):
    """A subset that is numbered within itself."""
    path = tmp_path / "val_map.txt"
    path.write_text("fox/x.jpg\t0\nb/cat/y.jpg\t1\nfox/z.jpg\t0\n")
    with caplog.at_level("INFO"):
        listed = read_list(path, 0, ["ant", "cat", "dog", "fox"])
    assert listed.labels == [3, 1, 3] and "from the folders of its images" in caplog.text
    assert read_list(path, 0, ["fox", "cat", "ant"]).labels == [0, 1, 0]  # the same order
    with raises(DataError, path, "label 1 is cat", "as 0", "1 folders", "fox"):
        read_list(path, 0, ["cat", "dog"])


def test_class_names_that_are_given_are_kept(tmp_path):
    (tmp_path / "train_map.txt").write_text("a/./x.jpg 1\n")
    listed = read_list(tmp_path / "train_map.txt", 0, ["p", "q"])
    assert (listed.names, listed.labels, listed.class_names) == (["a/x.jpg"], [1], ["p", "q"])
    with raises(DataError, f"{tmp_path}/train_map.txt:1", "label 1 is not in 0 to 0"):
        read_list(tmp_path / "train_map.txt", 0, ["p"])
