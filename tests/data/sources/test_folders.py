"""Image folders: class map, hidden and stray files, flat validation images."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from data.sources.folders import FolderStore, imagenet_synsets, images_below, validation_labels
from data.sources.unlabelled import UnlabelledStore
from tests.tools.builders import in_child, labels_of, open_folder, open_validation
from tests.tools.errors import raises
from utils.errors import DataError


def test_labels_follow_the_sorted_class_folders(photos):
    sources = open_folder(photos)
    assert sources.class_names == ("class_0", "class_1", "class_2")
    assert [sources.train.label(i) for i in (0, 11, 12, 35)] == [0, 0, 1, 2]
    assert sources.train.name(12).endswith("train/class_1/photo_0.jpg")
    assert sources.train[0].data[:2] == b"\xff\xd8"
    assert (len(sources.train), len(sources.val)) == (36, 15)


def test_fault_43_hidden_and_stray_files_are_passed_over(own_photos):
    (own_photos / "train" / ".ipynb_checkpoints").mkdir()
    (own_photos / "train" / ".ipynb_checkpoints" / "x.jpg").write_bytes(b"")
    (own_photos / "train" / "class_0" / "notes.txt").write_text("x")
    (own_photos / "train" / "class_0" / "._photo_0.jpg").write_bytes(b"x")
    (own_photos / "train" / "readme.md").write_text("x")
    assert len(open_folder(own_photos).train) == 36


def test_fault_43_an_empty_class_is_refused_by_name(own_photos):
    (own_photos / "train" / "class_9").mkdir()
    with raises(DataError, own_photos / "train/class_9", "class_9"):
        open_folder(own_photos)


def test_fault_44_unknown_validation_classes_are_named(own_photos):
    (own_photos / "val" / "class_1").rename(own_photos / "val" / "klass_1")
    with raises(DataError, own_photos / "val", "1 class is", 3, "klass_1"):
        open_folder(own_photos)


def test_fault_44_a_class_absent_from_validation_shifts_nothing(own_photos):
    shutil.rmtree(own_photos / "val" / "class_0")
    sources = open_folder(own_photos)
    assert set(labels_of(sources.val)) == {1, 2}
    assert sources.val.class_names == sources.train.class_names


def test_images_may_lie_deeper(own_photos):
    deeper = own_photos / "train" / "class_0" / "a" / "b"
    deeper.mkdir(parents=True)
    (own_photos / "train" / "class_0" / "photo_0.jpg").rename(deeper / "photo_0.jpg")
    assert len(open_folder(own_photos).train) == 36


def test_a_link_that_leads_back_up_multiplies_nothing(own_photos):
    (own_photos / "train" / "class_0" / "loop").symlink_to(own_photos / "train" / "class_0")
    (own_photos / "train" / "class_1" / "up").symlink_to("..")
    assert labels_of(open_folder(own_photos).train).count(0) == 12


def test_files_that_are_ignored_are_named(own_photos, caplog):
    (own_photos / "train/class_0/notes.txt").write_text("x")
    (own_photos / "train/class_0/photo_0.jpg").rename(own_photos / "train/class_0/photo_0.avif")
    assert len(open_folder(own_photos).train) == 36
    assert "left out: 1 file without an image extension" in caplog.text and "notes.txt" in caplog.text


def test_a_file_that_vanished_is_named(own_photos):
    source = open_folder(own_photos).train
    (own_photos / "train" / "class_0" / "photo_0.jpg").unlink()
    with raises(DataError, own_photos / "train/class_0/photo_0.jpg", os.strerror(errno.ENOENT)):
        _ = source[0]


def test_the_fingerprint_changes_with_the_files(own_photos):
    before = open_folder(own_photos).identity().fingerprint
    assert before == open_folder(own_photos).identity().fingerprint
    (own_photos / "train" / "class_0" / "photo_0.jpg").rename(own_photos / "train" / "class_0" / "photo_x.jpg")
    assert before != open_folder(own_photos).identity().fingerprint


def test_flat_validation_images_are_labelled_by_name(photos, tmp_path):
    synsets, labels = imagenet_synsets(), validation_labels()
    names = ["ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00015416.JPEG"]
    assert [labels[name] for name in names] == [970, 13] and len(labels) == 50_000
    (tmp_path / "val").mkdir()
    for name in names:
        shutil.copy(photos / "val/class_0/photo_0.jpg", tmp_path / "val" / name)
    val = open_validation(tmp_path)
    assert labels_of(val) == [13, 970] and val.class_names == tuple(synsets)
    for label in (13, 970):
        shutil.copytree(photos / "train/class_0", tmp_path / "train" / synsets[label])
    val = open_folder(tmp_path).val
    assert sorted(labels_of(val)) == [0, 1] and len(val.class_names) == 2
    shutil.copy(photos / "val/class_0/photo_0.jpg", tmp_path / "val/holiday.jpg")
    with raises(DataError, tmp_path / "val", 1, "holiday.jpg"):
        open_validation(tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with raises(DataError, tmp_path / "train", "class folders"):
        FolderStore(tmp_path).open("train")
    with raises(DataError, tmp_path / "val", os.strerror(errno.ENOENT)):
        FolderStore(tmp_path).class_names("val")


def test_what_lies_below_a_folder(tmp_path):
    for name in ("b.JPG", "a/c.webp", "a/d.txt", ".hidden/e.jpg", ".f.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = images_below(tmp_path)
    assert found.images == [f"{tmp_path}/b.JPG", f"{tmp_path}/a/c.webp"]
    assert [path for path, *_ in found.stamps] == [str(tmp_path), f"{tmp_path}/a"]
    assert found.ignored == [f"{tmp_path}/a/d.txt"]


def test_a_broken_link_to_a_class_is_refused(own_photos, tmp_path):
    (own_photos / "train/class_3").symlink_to(tmp_path / "unmounted")
    with raises(DataError, own_photos / "train/class_3", "broken link"):
        open_folder(own_photos)


@pytest.fixture
def readable(photos):
    """A copy of the photographs that any user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(photos, Path(folder, "photos")))
        for path in (copy, copy.parent):
            path.chmod(0o755)
        yield copy


@pytest.mark.parametrize("closed", ["train/class_1/more", "train/class_1", "train", "."])
def test_a_folder_that_cannot_be_listed_is_refused(readable, closed):
    folder = readable / closed
    folder.mkdir(exist_ok=True)
    folder.chmod(0)

    def open_all():
        if os.geteuid() == 0:  # root may list any folder
            os.setuid(65534)
        subject = readable / "train" if closed == "." else folder
        for store in (FolderStore(readable), UnlabelledStore(readable)) if closed != "." else ():
            with raises(DataError, subject, os.strerror(errno.EACCES)):
                store.open("train")
        with raises(DataError, subject, os.strerror(errno.EACCES)):
            open_folder(readable)

    assert in_child(open_all) == (0, "")
    folder.chmod(0o755)


def test_a_device_named_like_an_image_is_not_read(own_photos):
    (own_photos / "train/class_0/photo_0.jpg").unlink()
    (own_photos / "train/class_0/photo_0.jpg").symlink_to("/dev/zero")
    with raises(DataError, own_photos / "train/class_0/photo_0.jpg", "regular file"):
        _ = open_folder(own_photos).train[0]


def test_a_file_too_large_for_an_image_is_not_read(own_photos):
    os.truncate(own_photos / "train/class_0/photo_0.jpg", (1 << 30) + 1)
    with raises(DataError, own_photos / "train/class_0/photo_0.jpg", "1,073,741,825"):
        _ = open_folder(own_photos).train[0]
