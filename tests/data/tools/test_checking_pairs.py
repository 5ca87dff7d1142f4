"""What a check of images with label maps reports."""

import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.pipeline.decoding import ORIENTATION
from data.tools.checking_pairs import check_pairs, has_pairs
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture
def pairs(tmp_path):
    """Two training images and a validation image of 6x4, all different, with values 0 and 1."""
    for i, split in enumerate(("train", "train", "val")):
        for name, value in (("images", 40 * i + 20), ("labels", 0)):
            path = tmp_path / name / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((4, 6), value, np.uint8)
            pixels[:2] = 1 if name == "labels" else value
            Image.fromarray(pixels).save(path)
    return tmp_path


@pytest.mark.seconds
def test_a_clean_folder(pairs):
    (pairs / "classes.txt").write_text("ground\nsky\n")
    report = check_pairs(pairs, workers=1)
    assert report.findings == [] and has_pairs(pairs)
    assert report.facts == [
        f"layout folders: {pairs}",
        f"2 classes of {pairs}/classes.txt: ground, sky",
        "train: 2 images with label maps",
        f"train sizes: from 6x4 ({pairs}/images/train/0.png) to 6x4 ({pairs}/images/train/1.png), width x height",
        "val: 1 image with label maps",
        f"val sizes: from 6x4 ({pairs}/images/val/2.png) to 6x4 ({pairs}/images/val/2.png), width x height",
        *("value  train  val", "0      50%    50%", "1      50%    50%"),
        "2 classes, ignored values: none",
        "3 distinct images, 0 duplicates",
    ]


def test_problems_are_named_with_their_files(pairs):
    images, labels = pairs / "images/train", pairs / "labels/train"
    Image.new("L", (5, 4)).save(labels / "0.png")
    (labels / "1.png").write_bytes(b"text")
    for folder, source in (("images", "images/val/2.png"), ("labels", "labels/val/2.png")):
        shutil.copy(pairs / source, pairs / folder / "train/3.png")
    Image.new("L", (6, 4), 7).save(labels / "3.png")
    findings = "\n".join(check_pairs(pairs, workers=1).findings)
    for expected in (
        f"a label map of another size than its image, 5x4 for 6x4: {images}/0.png",
        f"{labels}/1.png",
        "values in train but not in val, 1: 7",
        "values in val but not in train, 2: 0, 1",
        f"the same image in train and val: {images}/3.png, {pairs}/images/val/2.png",
    ):
        assert expected in findings


def test_missing_splits_and_maps_are_findings(pairs):
    shutil.rmtree(pairs / "images/val")
    (pairs / "labels/train/0.png").unlink()
    findings = check_pairs(pairs, workers=1).findings
    assert any("1 of 2 images have no label map" in each for each in findings)
    assert f"no val images: {pairs}" in findings


def test_another_folder_has_no_pairs(tmp_path):
    assert not has_pairs(tmp_path)
    with raises(DataError, tmp_path):
        check_pairs(tmp_path, workers=1)


def test_values_that_training_refuses_are_findings(pairs):
    (pairs / "classes.txt").write_text("ground\nsky\n")
    for split, name in (("train", "0"), ("val", "2")):
        Image.new("L", (6, 4), 7).save(pairs / f"labels/{split}/{name}.png")
    (finding,) = (each for each in check_pairs(pairs, workers=1).findings if "without a class" in each)
    assert finding.startswith("DATA.IGNORE_LABEL: values without a class: 7")


def test_images_are_decoded_with_the_channels_of_the_model(pairs):
    findings = check_pairs(pairs, workers=1, channels=5).findings
    assert findings == [] and check_pairs(pairs, workers=1, channels=3).findings == []
    bands = np.zeros((4, 6, 5), np.uint8)
    for split, number in (("train", 0), ("train", 1), ("val", 2)):
        (pairs / f"images/{split}/{number}.png").unlink()
        target = pairs / f"images/{split}/{number}.tif"
        tifffile.imwrite(target, bands + number, photometric="minisblack", planarconfig="contig")
    assert check_pairs(pairs, workers=1, channels=5).findings == []
    assert len(check_pairs(pairs, workers=1).findings) == 3


@pytest.mark.parametrize(
    ("turn", "size", "expected"), [(3, (6, 4), "may follow"), (6, (5, 5), "may follow"), (6, (4, 6), "")]
)
def test_turned_images_whose_sizes_prove_nothing_are_findings(pairs, turn, size, expected):
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    Image.new("RGB", size, "red").save(pairs / "images/val/2.jpg", exif=exif)
    (pairs / "images/val/2.png").unlink()
    pixels = np.zeros(size if turn > 4 else size[::-1], np.uint8)
    pixels[0] = 1
    Image.fromarray(pixels).save(pairs / "labels/val/2.png")
    findings = check_pairs(pairs, workers=1).findings
    assert len(findings) == bool(expected) and all(expected in each and "2.jpg" in each for each in findings)
    Image.fromarray(pixels.T).save(pairs / "labels/val/2.png")
    if not expected:
        assert any("DATA.EXIF ignore" in finding for finding in check_pairs(pairs, workers=1).findings)
