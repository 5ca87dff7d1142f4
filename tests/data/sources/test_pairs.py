"""Images and label maps are paired in every layout; what does not fit is named."""

import pytest

from data.sources.pairs import PairStore
from tests.tools.errors import raises
from utils.errors import DataError


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


CITY = "{}/{}/bonn/bonn_000_{}"
LAYOUTS = {
    "ade20k": [
        "ADEChallengeData2016/images/training/ADE_train_1.jpg",
        "ADEChallengeData2016/annotations/training/ADE_train_1.png",
        "ADEChallengeData2016/images/validation/ADE_val_1.jpg",
        "ADEChallengeData2016/annotations/validation/ADE_val_1.png",
    ],
    "cityscapes": [
        name
        for split in ("train", "val")
        for name in (
            CITY.format("leftImg8bit", split, "leftImg8bit.png"),
            CITY.format("gtFine", split, "gtFine_labelTrainIds.png"),
            CITY.format("gtFine", split, "gtFine_labelIds.png"),
            CITY.format("gtFine", split, "gtFine_color.png"),
        )
    ],
    "cityscapes_ids": [
        name
        for split in ("train", "val")
        for name in (
            CITY.format("leftImg8bit", split, "leftImg8bit.png"),
            CITY.format("gtFine", split, "gtFine_labelIds.png"),
        )
    ],
    "folders": ["images/train/a.jpg", "labels/train/a.png", "images/val/sub/b.tif", "labels/val/sub/b.png"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_and_its_files_are_paired(tmp_path, layout):
    write(tmp_path, *LAYOUTS[layout])
    store = PairStore(tmp_path)
    assert store.layout == layout and store.has("train") and store.has("val")
    for split in ("train", "val"):
        source = store.open(split)
        assert len(source) == 1
        record = source[0]
        assert record.data != record.target and record.name.endswith(record.data.decode().rpartition("/")[2])
        if layout.startswith("cityscapes"):
            assert record.target.decode().endswith("TrainIds.png" if layout == "cityscapes" else "labelIds.png")


def test_lists_choose_the_images_of_a_split(tmp_path):
    write(tmp_path, *(f"VOCdevkit/VOC2012/JPEGImages/{i}.jpg" for i in range(4)))
    write(tmp_path, *(f"VOCdevkit/VOC2012/SegmentationClass/{i}.png" for i in range(3)))
    lists = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n2\n")
    (lists / "val.txt").write_text("1.jpg\n")
    store = PairStore(tmp_path)
    names = [[source.name(i)[-5:] for i in range(len(source))] for source in map(store.open, ("train", "val"))]
    assert store.layout == "voc" and names == [["0.jpg", "2.jpg"], ["1.jpg"]]
    (lists / "val.txt").write_text("1\n9\n")
    with raises(DataError, lists / "val.txt", "9"):
        store.open("val")
    (lists / "val.txt").write_text("3\n")
    with raises(DataError, tmp_path / "VOCdevkit/VOC2012", "3.jpg"):
        store.open("val")


def test_an_image_without_a_label_map_is_named(tmp_path):
    write(tmp_path, "images/train/a.jpg", "images/train/b.jpg", "labels/train/a.png")
    with raises(DataError, tmp_path, "b.jpg", "1 of 2"):
        PairStore(tmp_path).open("train")


def test_two_images_of_one_name_and_missing_splits_are_named(tmp_path):
    write(tmp_path, "images/train/a.jpg", "images/train/a.png", "labels/train/a.png")
    store = PairStore(tmp_path)
    with raises(DataError, tmp_path / "images/train/a.jpg"):
        store.open("train")
    assert not store.has("val")
    with raises(DataError, tmp_path, "val"):
        store.open("val")


def test_other_folders_are_rejected(tmp_path):
    with raises(DataError, tmp_path / "none"):
        PairStore(tmp_path / "none")
    write(tmp_path, "train/class/a.jpg")
    with raises(DataError, tmp_path, "images/train"):
        PairStore(tmp_path)


def test_the_digest_covers_the_names(tmp_path):
    write(tmp_path, *LAYOUTS["folders"])
    first = PairStore(tmp_path).open("train").fingerprint()
    write(tmp_path, "images/train/c.jpg", "labels/train/c.png")
    assert PairStore(tmp_path).open("train").fingerprint() != first
