"""Zip archives: members read by offset, and every damage named with its archive and member."""

import zipfile

import pytest

from data.sources.zip import ZipStore
from tests.data.sources.storages import ESCAPING, SPLITS, files, write_lists, write_zips
from tests.tools.builders import labels_of, open_folder
from tests.tools.errors import raises
from utils.errors import DataError


def test_a_map_decides_which_members_are_samples(photos, tmp_path):
    write_zips(photos, tmp_path)
    (tmp_path / "train_map.txt").write_text("class_1/photo_2.jpg\t1\nclass_0/photo_7.jpg\t0\n")
    source = ZipStore(tmp_path).open("train")
    assert source.class_names == ("class_0", "class_1") and labels_of(source) == [0, 1]
    assert source.name(1) == f"{tmp_path}/train.zip@/class_1/photo_2.jpg"
    assert source[1].data == (photos / "train/class_1/photo_2.jpg").read_bytes()


def test_the_splits_own_folder_in_the_archive_is_optional(photos, tmp_path):
    names = []
    for below in (True, False):
        target = tmp_path / str(below)
        target.mkdir()
        write_zips(photos, target, below=below)
        store = ZipStore(target)
        assert store.has("train") and not store.has("test") and store.class_names("val")[0] == "class_0"
        source = store.open("train")
        names.append([source.name(i).partition("@/")[2] for i in range(len(source))])
    assert names[0] == names[1] == [name for name, _ in files(photos, "train")]


@pytest.mark.parametrize("below", [True, False])
def test_a_map_may_name_the_splits_own_folder(photos, tmp_path, below):
    write_zips(photos, tmp_path, below=below)
    write_lists(photos, tmp_path, below=True)
    source = ZipStore(tmp_path).open("train")
    assert [source.name(i).partition("@/")[2] for i in range(36)] == [name for name, _ in files(photos, "train")]


def test_fault_43_hidden_folders_in_an_archive_are_passed_over(photos, tmp_path):
    write_zips(photos, tmp_path)
    with zipfile.ZipFile(tmp_path / "train.zip", "a") as archive:
        for name in (".ipynb_checkpoints/x.jpg", "class_0/.thumbnails/x.jpg"):
            archive.write(photos / "train/class_0/photo_0.jpg", f"train/{name}")
    source = ZipStore(tmp_path).open("train")
    assert len(source) == 36 and source.class_names == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize("name", ESCAPING)
def test_fault_46_paths_out_of_the_root_are_refused_in_a_map(photos, tmp_path, name):
    write_zips(photos, tmp_path)
    (tmp_path / "train_map.txt").write_text(f"{name}\t0\n")
    with raises(DataError, f"{tmp_path}/train_map.txt:1", repr(name)):
        ZipStore(tmp_path).open("train")


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg"])
def test_fault_46_paths_out_of_the_root_are_refused_in_an_archive(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr(name, b"x")
    with raises(DataError, f"{tmp_path}/train.zip@/{name}", repr(name)):
        ZipStore(tmp_path).open("train")


def test_fault_47_corrupt_archives_are_refused(photos, tmp_path):
    write_zips(photos, tmp_path)
    archive = tmp_path / "train.zip"
    source = open_folder(tmp_path, zipped=True).train
    data = bytearray(archive.read_bytes())
    data[200] ^= 1  # in the first member
    archive.write_bytes(data)
    with raises(DataError, f"{archive}@/class_0/photo_0.jpg", "checksum"):
        _ = source[0]
    archive.write_bytes(data[:5000])
    with raises(DataError, f"{archive}@/class_2/photo_9.jpg", "no member"):
        _ = source[35]
    with raises(DataError, archive):
        open_folder(tmp_path, zipped=True)


def test_fault_47_missing_and_encrypted_members_are_refused(photos, tmp_path):
    write_zips(photos, tmp_path)
    (tmp_path / "train_map.txt").write_text("class_0/photo_0.jpg\t0\nclass_0/gone.jpg\t0\n")
    with raises(DataError, f"{tmp_path}/train.zip@/class_0/gone.jpg", 1, tmp_path / "train_map.txt"):
        ZipStore(tmp_path).open("train")
    (tmp_path / "train_map.txt").unlink()
    data = bytearray((tmp_path / "train.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, in the directory
    (tmp_path / "train.zip").write_bytes(data)
    with raises(DataError, f"{tmp_path}/train.zip@/train/class_0/photo_0.jpg", "encrypted"):
        ZipStore(tmp_path).open("train")


def test_fault_47_other_compressions_are_refused(photos, tmp_path):
    write_zips(photos, tmp_path, zipfile.ZIP_BZIP2)
    with raises(DataError, f"{tmp_path}/train.zip@/train/class_0/photo_0.jpg", 12):
        ZipStore(tmp_path).open("train")


def test_fault_47_zip64_is_read(photos, tmp_path):
    for split in SPLITS:
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for name, _ in files(photos, split):
                with archive.open(f"{split}/{name}", "w", force_zip64=True) as member:
                    member.write((photos / split / name).read_bytes())
    source = open_folder(tmp_path, zipped=True).train
    assert source[5].data == (photos / "train" / files(photos, "train")[5][0]).read_bytes()


def test_a_changed_map_is_noticed_by_the_stored_index(photos, tmp_path):
    write_zips(photos, tmp_path)
    write_lists(photos, tmp_path)
    assert len(ZipStore(tmp_path).open("train")) == 36
    (tmp_path / "train_map.txt").write_text("class_0/photo_0.jpg\t0\n")
    assert len(ZipStore(tmp_path).open("train")) == 1
