"""Image folders: class map, hidden and stray files, every refusal."""

import shutil

import pytest

from data.sources.digits import write_digits
from data.sources.open import chosen_classes
from tests.builders import open_data, open_folder, open_validation
from utils.errors import DataError


def test_labels_follow_the_sorted_class_folders(photos):
    sources = open_folder(photos)
    assert sources.class_names == ("class_0", "class_1", "class_2")
    assert [sources.train.label(i) for i in (0, 11, 12, 35)] == [0, 0, 1, 2]
    assert sources.train.name(12).endswith("train/class_1/photo_0.jpg")
    assert sources.train.read(0)[:2] == b"\xff\xd8"
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
    with pytest.raises(DataError, match="no images for class class_9"):
        open_folder(own_photos)


def test_fault_44_strange_validation_classes_are_named(own_photos):
    (own_photos / "val" / "class_1").rename(own_photos / "val" / "klass_1")
    with pytest.raises(DataError, match="1 classes of .*val are not among the 3 of training: klass_1"):
        open_folder(own_photos)


def test_fault_44_a_class_absent_from_validation_shifts_nothing(own_photos):
    for file in (own_photos / "val" / "class_0").iterdir():
        file.unlink()
    (own_photos / "val" / "class_0").rmdir()
    sources = open_folder(own_photos)
    assert {sources.val.label(i) for i in range(len(sources.val))} == {1, 2}
    assert sources.val.class_names == sources.train.class_names


def test_images_may_lie_deeper(own_photos):
    deeper = own_photos / "train" / "class_0" / "a" / "b"
    deeper.mkdir(parents=True)
    (own_photos / "train" / "class_0" / "photo_0.jpg").rename(deeper / "photo_0.jpg")
    assert len(open_folder(own_photos).train) == 36


def test_a_link_that_leads_back_up_multiplies_nothing(own_photos):
    (own_photos / "train" / "class_0" / "loop").symlink_to(own_photos / "train" / "class_0")
    (own_photos / "train" / "class_1" / "up").symlink_to("..")
    sources = open_folder(own_photos)
    assert sum(sources.train.label(i) == 0 for i in range(len(sources.train))) == 12


def test_evaluation_needs_no_training_folder(own_photos):
    shutil.rmtree(own_photos / "train")
    names = ["class_0", "other", "class_1", "class_2"]
    val = open_validation(own_photos, names=names)
    assert {val.label(i) for i in range(len(val))} == {0, 2, 3}
    assert open_validation(own_photos).class_names == ("class_0", "class_1", "class_2")
    with pytest.raises(DataError, match="no folder train/"):
        open_folder(own_photos)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": ""}, "quickstart.sh"),
        ({"path": "/nowhere"}, "no folder train/ in /nowhere"),
        ({"dataset": "cifar"}, "unknown data set 'cifar'"),
        ({"zipped": True}, "no archive train.zip"),
        ({"dataset": "tar"}, "no train.tar"),
        ({"dataset": "list"}, "no list of images: x/train_map.txt"),
    ],
)
def test_what_is_missing_is_said(arguments, message):
    with pytest.raises(DataError) as caught:
        open_data(**{"dataset": "imagenet", "path": "x", **arguments})
    assert message in str(caught.value)


def test_the_number_of_classes_can_be_demanded(photos):
    assert len(open_folder(photos, classes=3).class_names) == 3
    with pytest.raises(DataError, match="has 3 classes, not 1000: MODEL.NUM_CLASSES"):
        open_folder(photos, classes=1000)


def test_more_classes_than_the_data_are_the_models_own(photos):
    """A head of ten outputs, trained on data that had the first three classes."""
    val = open_validation(photos, classes=10)
    assert val.class_names[:4] == ("class_0", "class_1", "class_2", "class 3") and len(val.class_names) == 10
    assert {val.label(i) for i in range(len(val))} == {0, 1, 2}


def test_training_without_validation_data(own_photos):
    shutil.rmtree(own_photos / "val")
    sources = open_folder(own_photos, validate=False)
    assert sources.val is None and sources.describe() == "36 training samples, 3 classes"
    with pytest.raises(DataError, match="no folder val/ .*TEST.VALIDATE false"):
        open_folder(own_photos)


def test_files_that_are_ignored_are_named(own_photos, caplog):
    (own_photos / "train/class_0/notes.txt").write_text("x")
    (own_photos / "train/class_0/photo_0.jpg").rename(own_photos / "train/class_0/photo_0.avif")
    assert len(open_folder(own_photos).train) == 36
    assert "1 files without an image extension are ignored" in caplog.text and "notes.txt" in caplog.text


def test_a_file_that_vanished_is_named(own_photos):
    source = open_folder(own_photos).train
    (own_photos / "train" / "class_0" / "photo_0.jpg").unlink()
    with pytest.raises(DataError, match=r"No such file.*class_0/photo_0\.jpg"):
        source.read(0)


def test_fingerprint_changes_with_the_files(own_photos):
    before = open_folder(own_photos).identity()[2]
    assert before == open_folder(own_photos).identity()[2]
    (own_photos / "train" / "class_0" / "photo_0.jpg").rename(own_photos / "train" / "class_0" / "photo_x.jpg")
    assert before != open_folder(own_photos).identity()[2]


def test_digits_are_written_once_with_a_fixed_split(tmp_path):
    root = write_digits(tmp_path / "digits")
    sources = open_data("digits", root)
    assert (len(sources.train), len(sources.val)) == (1437, 360)
    assert sources.class_names == tuple("0123456789")
    counts = [sum(sources.val.label(i) == c for i in range(360)) for c in range(10)]
    assert min(counts) >= 35 and max(counts) <= 37  # stratified
    stamp = (root / "train").stat().st_mtime_ns
    assert write_digits(root) == root and (root / "train").stat().st_mtime_ns == stamp
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]


def test_a_folder_with_some_of_the_digits_is_taken_as_it_is(tmp_path):
    digits = write_digits(tmp_path / "digits")
    for split in ("train", "val"):
        (tmp_path / "some" / split).mkdir(parents=True)
        for name in "03":
            (tmp_path / "some" / split / name).symlink_to(digits / split / name)
    sources = open_data("digits", tmp_path / "some")
    assert sources.class_names == ("0", "3") and len(list((tmp_path / "some").iterdir())) == 2


def test_digits_do_not_overwrite_another_folder(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="not the digits"):
        write_digits(tmp_path / "x")


def test_the_class_map_of_an_evaluation(own_photos, tmp_path):
    usual = ["class_2", "other", "class_0", "class_1"]
    own = ("class_0", "class_1", "class_2")
    assert open_validation(own_photos, likely=usual).class_names == tuple(usual)
    assert open_validation(own_photos, likely=usual, classes=3).class_names == own
    for split in ("train", "val"):
        (own_photos / split / "class_0").rename(own_photos / split / "mine")
    (own_photos / "train" / "more").mkdir()
    copy = own_photos / "train/more/a.jpg"
    shutil.copy(next((own_photos / "train/mine").iterdir()), copy)
    assert open_validation(own_photos, likely=usual).class_names == ("class_1", "class_2", "mine", "more")  # train's
    shutil.rmtree(own_photos / "train")
    assert open_validation(own_photos, likely=usual).class_names == ("class_1", "class_2", "mine")


def test_chosen_classes(photos, own_photos, tmp_path):
    source = open_validation(photos)
    assert chosen_classes("", source) == [] and chosen_classes("present", source) == [0, 1, 2]
    (tmp_path / "names.txt").write_text("class_2\n\nclass_0\nclass_1\n")
    assert chosen_classes(str(tmp_path / "names.txt"), source) == [0, 1, 2]
    (tmp_path / "names.txt").write_text("class_2\n")
    with pytest.raises(DataError, match="classes beyond those selected"):
        chosen_classes(str(tmp_path / "names.txt"), source)
    (tmp_path / "names.txt").write_text("class_9\n")
    with pytest.raises(DataError, match="no such classes: .*class_9"):
        chosen_classes(str(tmp_path / "names.txt"), source)
    with pytest.raises(DataError, match="No such file"):
        chosen_classes(str(tmp_path / "gone.txt"), source)
