"""What a check of images with annotated objects reports."""

import json
import shutil

import numpy as np
from PIL import Image

from data.pipeline.decoding import ORIENTATION
from data.tools.checking_objects import check_objects, has_objects
from data.tools.checking_pairs import has_pairs
from tests.data.sources.object_sets import made, save, write_coco, write_yolo


def test_a_clean_folder(tmp_path):
    write_coco(tmp_path, {"train": 6, "val": 3}, empty=1)
    report = check_objects(tmp_path, workers=1)
    train = made("train", 6, empty=1)
    objects = [label for image in train for label, *_ in image.objects]
    assert has_objects(tmp_path) and report.findings == []
    assert report.facts[:4] == [
        f"layout coco: {tmp_path}",
        f"train: 6 images with {len(objects)} objects",
        "train: 1 image without objects: train_0.png",
        f"train objects: {len(objects)} small, 0 medium, 0 large",
    ]
    assert [line.split() for line in report.facts if line.startswith(("red", "blue"))] == [
        [
            name,
            str(objects.count(label)),
            str(sum(own == label for image in made("val", 3, 1) for own, *_ in image.objects)),
        ]
        for label, name in enumerate(("red", "blue"))
    ]
    assert report.facts[-1] == "9 distinct images, 0 duplicates"


def test_problems_are_named_with_their_files(tmp_path):
    write_coco(tmp_path, {"train": 5, "val": 2})
    folder, file = tmp_path / "train2017", tmp_path / "annotations/instances_train2017.json"
    contents = json.loads(file.read_text())
    for entry in contents["annotations"]:
        entry["category_id"] = 44
    contents["annotations"][0]["bbox"] = [1, 1, 0, 4]
    del contents["annotations"][1]["segmentation"]
    file.write_text(json.dumps(contents))
    (folder / "train_0.png").write_bytes(b"text")
    save(folder / "train_1.png", np.zeros((8, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.open(folder / "train_2.png").save(folder / "train_2.png", exif=exif)
    shutil.copy(tmp_path / "val2017/val_0.png", folder / "train_3.png")
    findings = "\n".join(check_objects(tmp_path, workers=1).findings)
    height, width = made("train", 3)[1].pixels.shape[:2]
    for expected in (
        f"{folder}/train_0.png",
        f"annotations for another size of image, {width}x{height} instead of 9x8: {folder}/train_1.png",
        f"they ignore the EXIF orientation (DATA.EXIF ignore): {folder}/train_2.png",
        "train: no objects of 1 class: blue",
        "1 object without a mask",
        "train: 1 annotation whose box has a side below 1 pixel",
    ):
        assert expected in findings, expected


def test_the_same_image_in_both_splits_is_a_finding(tmp_path):
    write_yolo(tmp_path, {"train": 2, "val": 1})
    for kind, ending in (("images", "png"), ("labels", "txt")):
        shutil.copy(tmp_path / f"{kind}/val/val_0.{ending}", tmp_path / f"{kind}/train/again.{ending}")
    findings = check_objects(tmp_path, workers=1).findings
    images = tmp_path / "images"
    assert f"the same image in train and val: {images}/train/again.png, {images}/val/val_0.png" in findings


def test_text_files_beside_images_are_no_label_maps(tmp_path):
    write_yolo(tmp_path, {"train": 2, "val": 1})
    assert has_objects(tmp_path) and not has_pairs(tmp_path)
    save(tmp_path / "labels/train/train_0.png", np.zeros((4, 4, 3), np.uint8))
    assert has_objects(tmp_path) and has_pairs(tmp_path)


def test_a_split_that_cannot_be_read_is_a_finding(tmp_path):
    write_coco(tmp_path, {"train": 2})
    (tmp_path / "annotations/instances_train2017.json").write_text("[")
    findings = check_objects(tmp_path, workers=1).findings
    assert any("no JSON file" in line for line in findings) and f"no val images: {tmp_path}" in findings
    assert not has_objects(tmp_path / "train2017")
