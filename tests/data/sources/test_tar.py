"""Tar shards: class folders or WebDataset's pairs, read by offset; every damage is named with its member."""

import io
import os
import shutil
import tarfile

import pytest

from data.sources.tar import TarStore
from tests.data.sources.storages import files, write_shard, write_tars
from tests.tools.builders import labels_of
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture
def image(photos):
    return photos / "train/class_0/photo_0.jpg"


@pytest.mark.parametrize("below", [True, False])
def test_class_folders_give_the_labels(photos, tmp_path, below):
    write_tars(photos, tmp_path, below)
    store = TarStore(tmp_path)
    source = store.open("train")
    assert store.has("val") and not store.has("test") and store.class_names("val") == ["class_0", "class_1", "class_2"]
    assert [source.name(i) for i in range(36)] == [f"{tmp_path}@/{name}" for name, _ in files(photos, "train")]
    assert labels_of(source) == [label for _, label in files(photos, "train")]
    assert labels_of(store.open("val", ["x", "class_2", "class_1", "class_0"])) == [1] * 5 + [2] * 5 + [3] * 5


def test_fault_43_hidden_folders_in_a_tar_are_passed_over(photos, tmp_path, image):
    write_tars(photos, tmp_path)
    with tarfile.open(tmp_path / "train.tar", "a") as archive:
        archive.add(image, arcname="./train/.ipynb_checkpoints/x.jpg")
    source = TarStore(tmp_path).open("train")
    assert len(source) == 36 and source.class_names == ("class_0", "class_1", "class_2")


def test_keys_of_webdataset_may_repeat_in_other_shards(photos, tmp_path, image):
    other = photos / "train/class_1/photo_3.jpg"
    write_shard(tmp_path / "train-000.tar", [(image, "00000", "2\n"), (image, "00001", "0")])
    write_shard(tmp_path / "train-001.tar", [(other, "00000", "1")])
    source = TarStore(tmp_path).open("train")
    assert source.class_names == ("0", "1", "2") and labels_of(source) == [0, 1, 2]
    assert source.name(1) == f"{tmp_path}@/train-001.tar/00000.jpg" and source[1].data == other.read_bytes()
    assert TarStore(tmp_path).open("train", None, 10).class_names[9] == "9"
    assert TarStore(tmp_path).open("train", ["a", "b", "c"]).class_names == ("a", "b", "c")


@pytest.mark.parametrize("label", [None, "3", "-1"])
def test_an_image_of_webdataset_needs_a_label_in_range(tmp_path, image, label):
    write_shard(tmp_path / "train.tar", [(image, "a", "0"), (image, "b", label)])
    with raises(DataError, f"{tmp_path}@/b.jpg", "0 to 2", ".cls"):
        TarStore(tmp_path).open("train", None, 3)


def test_a_label_that_is_no_number_is_refused(tmp_path, image):
    write_shard(tmp_path / "train.tar", [(image, "a", "dog")])
    with raises(DataError, tmp_path / "train.tar", "dog"):
        TarStore(tmp_path).open("train")


def test_fault_46_paths_out_of_the_root_are_refused_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        info = tarfile.TarInfo("../x.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with raises(DataError, f"{tmp_path}/train.tar@/../x.jpg", "'../x.jpg'"):
        TarStore(tmp_path).open("train")


def test_fault_47_compressed_and_truncated_tars_are_refused(photos, tmp_path):
    write_tars(photos, tmp_path)
    source = TarStore(tmp_path).open("train")
    os.truncate(tmp_path / "train.tar", 1000)
    with raises(DataError, f"{tmp_path}@/class_0/photo_0.jpg", "truncated"):
        _ = source[0]
    with tarfile.open(tmp_path / "val.tar", "w:gz") as archive:
        archive.add(photos / "val", arcname="val")
    with raises(DataError, tmp_path / "val.tar", "uncompressed"):
        TarStore(tmp_path).open("val")


def test_a_new_shard_is_noticed(tmp_path, image):
    write_shard(tmp_path / "train-0.tar", [(image, "a", "0")])
    assert len(TarStore(tmp_path).open("train")) == 1
    shutil.copy(tmp_path / "train-0.tar", tmp_path / "train-1.tar")
    assert len(TarStore(tmp_path).open("train")) == 2
