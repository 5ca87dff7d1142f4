"""Image folders: class map, hidden and stray files, flat validation images."""

import errno
import os
import shutil

from data.sources.folders import FolderStore, imagenet_synsets, images_below, is_image, validation_labels
from tests.tools.builders import labels_of, open_folder, open_validation
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
    with raises(DataError, own_photos / "val", "1 classes", 3, "klass_1"):
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
    assert "1 files without an image extension are ignored" in caplog.text and "notes.txt" in caplog.text


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
    assert [name for name in ("x.jpeg", "x.TIF", "y/.x.jpg", "x.jpg.txt", "x") if is_image(name)] == ["x.jpeg", "x.TIF"]
