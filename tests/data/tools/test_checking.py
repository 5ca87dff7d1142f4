"""What a check of an image folder reports, fact by fact and finding by finding."""

import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from data.tools.checking import check_folder
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture
def colours(tmp_path):
    """Two classes with two images each in train, one each in val; all different."""
    root, shade = tmp_path / "data", 0
    for split, count in (("train", 2), ("val", 1)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                shade += 20
                Image.new("L", (4, 4), shade).save(root / split / name / f"{i}.png")
    return root


def test_a_clean_folder(colours):
    report = check_folder(colours, workers=1)
    assert report.findings == []
    assert report.facts == [
        "train: 4 images, 2 classes, 2 to 2 in a class",
        "val: 2 images, 2 classes, 1 to 1 in a class",
        *("class  train  val  share", "a          2    1  50.0%", "b          2    1  50.0%"),
        f"sizes: from 4x4 ({colours}/train/a/0.png) to 4x4 ({colours}/val/b/0.png), width x height",
        "6 distinct images, 0 duplicates within a class",
    ]


def test_problems_are_named_with_their_files(colours):
    train, val = colours / "train", colours / "val"
    shutil.copy(train / "a/0.png", train / "a/again.png")  # a duplicate in its own class is only counted
    shutil.copy(train / "a/1.png", train / "b/copied.png")
    shutil.copy(train / "b/0.png", val / "b/leaked.png")
    (train / "a/bad.png").write_bytes(b"text")
    (train / "empty").mkdir()
    (train / "b/notes.txt").touch()
    (train / "b/gone.png").symlink_to("nowhere.png")
    Image.new("L", (4, 4), 250).save(val / "loose.png")
    (val / "c").mkdir()
    Image.new("L", (4, 4), 251).save(val / "c/0.png")
    report = check_folder(colours, workers=1)
    expected = [
        f"no images for class empty: {train}/empty",
        f"files without an image extension, 1: {train}/b/notes.txt",
        f"broken links, 1: {train}/b/gone.png",
        f"images outside the class folders, 1: {val}/loose.png",
        "classes in val but not in train, 1: c",
        f"the same image in two classes: {train}/a/1.png, {train}/b/copied.png",
        f"the same image in train and val: {train}/b/0.png, {val}/b/leaked.png",
    ]
    assert [finding for finding in expected if finding not in report.findings] == []
    others = [finding for finding in report.findings if finding not in expected]
    assert len(others) == 2 and all("bad.png" in text or "gone.png" in text for text in others), others
    assert report.facts[-1].endswith("1 duplicate within a class")


def test_classes_one_level_too_deep(colours):
    for split in ("train", "val"):
        (colours / split).rename(colours / "flowers")
        (colours / split).mkdir()
        (colours / "flowers").rename(colours / split / "flowers")
    expected = [
        f"one class, with subfolders that may be the classes: {colours / split}/flowers: a, b"
        for split in ("train", "val")
    ]
    assert check_folder(colours, workers=1).findings == expected


def test_class_names_that_sort_or_read_badly(tmp_path):
    for name in ("1", "2", "10"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("L", (4, 4), int(name)).save(tmp_path / "train" / name / "a.png")
    report = check_folder(tmp_path, workers=1)
    assert f"no folder val/: {tmp_path}" in report.findings
    assert any("label 1 is not class 1" in text and "(02)" in text for text in report.findings)
    (tmp_path / "train/10").rename(tmp_path / "train/Dog")
    shutil.copytree(tmp_path / "train/1", tmp_path / "train/dog")
    Image.new("L", (4, 4), 99).save(tmp_path / "train/dog/a.png")
    report = check_folder(tmp_path, workers=1)
    assert any("class names" in text and "'Dog', 'dog'" in text for text in report.findings)


def test_a_missing_folder_is_refused(tmp_path):
    with raises(DataError, tmp_path / "gone"):
        check_folder(tmp_path / "gone", workers=1)


def test_more_channels_are_decoded_as_training_decodes_them(tmp_path):
    import tifffile

    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            bands = np.full((8, 8, 5), len(label) + len(split), np.uint16)
            bands[0, 0] = ord(label)
            tifffile.imwrite(tmp_path / split / label / "x.tif", bands, photometric="minisblack", planarconfig="contig")
    assert check_folder(tmp_path, workers=1, channels=5).findings == []
    assert len(check_folder(tmp_path, workers=1).findings) == 4


def test_photographs_as_people_have_them(tmp_path):
    """Unsplit, imbalanced, from phones; one of them twice, in another size and class."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    turned = Image.Exif()
    turned[274] = 6
    for number in range(12):
        (tmp_path / "cat").mkdir(exist_ok=True)
        photos[0].crop((30 * number, 0, 30 * number + 200, 150)).save(tmp_path / f"cat/{number:02}.jpg", exif=turned)
    (tmp_path / "dog").mkdir()
    photos[1].save(tmp_path / "dog/a.jpg")
    Image.open(tmp_path / "cat/03.jpg").resize((100, 75)).save(tmp_path / "dog/small.jpg", exif=turned)
    (tmp_path / "dog/small.jpg").rename(tmp_path / "dog/b.jpg")
    (tmp_path / "dog/b.jpg").replace(tmp_path / "dog/a.jpg")
    report = check_folder(tmp_path, workers=1)
    assert report.findings == [f"nearly the same image in two classes: {tmp_path}/cat/03.jpg, {tmp_path}/dog/a.jpg"]
    assert "imbalanced: cat has 12 images, dog has 1" in "\n".join(report.facts)
    assert f"sizes: from 100x75 ({tmp_path}/dog/a.jpg) to 200x150" in "\n".join(report.facts)
    assert any(fact.startswith("13 images are turned by EXIF orientation") for fact in report.facts)
    assert any(fact.startswith("no train/ and val/") for fact in report.facts)


def test_one_class_has_nothing_to_distinguish(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat/a.png")
    assert check_folder(tmp_path, workers=1).findings == ["one class only, cat: there is nothing to distinguish"]


def test_bands_that_rgb_does_not_have_are_not_dropped(tmp_path):
    import tifffile

    (tmp_path / "cat").mkdir()
    bands = np.zeros((8, 8, 5), np.uint8)
    tifffile.imwrite(tmp_path / "cat/a.tif", bands, photometric="rgb", planarconfig="contig")
    assert any("5 channels, but IN_CHANS is 3" in text for text in check_folder(tmp_path, workers=1).findings)
    assert not any("channels" in text for text in check_folder(tmp_path, workers=1, channels=5).findings)
