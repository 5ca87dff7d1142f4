"""Packing, resizing and sorting an image folder: nothing lost, nothing half done."""

import os
import shutil
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.sources.folders import imagenet_synsets
from data.tools.packing import ORIENTATION, pack, resize_copy, sort_validation
from tests.conftest import ROOT
from tests.data.sources.storages import files
from tests.tools.builders import open_folder
from tests.tools.errors import raises
from utils.errors import DataError, ResourceError


def images_of(source):
    return [(source.label(i), source[i].data) for i in range(len(source))]


def test_archives_hold_the_same_samples(photos, tmp_path):
    assert pack(photos, tmp_path / "zips") == {"train": 36, "val": 15}
    ours, theirs = open_folder(photos), open_folder(tmp_path / "zips", zipped=True)
    assert ours.identity() == theirs.identity()
    assert images_of(ours.train) == images_of(theirs.train) and images_of(ours.val) == images_of(theirs.val)
    names = sorted(p.name for p in (tmp_path / "zips").iterdir())
    assert names == ["train.zip", "train_map.txt", "val.zip", "val_map.txt"]
    lines = (tmp_path / "zips/val_map.txt").read_text().splitlines()
    assert lines == [f"{name}\t{label}" for name, label in files(photos, "val")]
    with zipfile.ZipFile(tmp_path / "zips/train.zip") as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def test_archives_are_replaced_only_if_asked(photos, tmp_path):
    (tmp_path / "val.zip").write_bytes(b"mine")
    with raises(DataError, tmp_path, "val.zip", "--force"):
        pack(photos, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["val.zip"]
    assert pack(photos, tmp_path, replace=True) and zipfile.is_zipfile(tmp_path / "val.zip")


def test_nested_images_are_not_packed_under_other_classes(own_photos, tmp_path):
    (own_photos / "train/class_0/deeper").mkdir()
    (own_photos / "train/class_0/photo_0.jpg").rename(own_photos / "train/class_0/deeper/photo_0.jpg")
    with raises(DataError, own_photos / "train/class_0/deeper/photo_0.jpg", "class/image"):
        pack(own_photos, tmp_path / "zips")
    assert list((tmp_path / "zips").iterdir()) == []


@pytest.fixture
def mixed(tmp_path):
    """A small, a large, a rotated image, one of grey 16-bit values, one with alpha, one of five bands."""
    folder = tmp_path / "data/train/a"
    folder.mkdir(parents=True)
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    Image.new("RGB", (30, 20), "red").save(folder / "small.jpg")
    Image.new("RGB", (300, 200), "red").save(folder / "large.png")
    Image.new("RGB", (200, 300), "red").save(folder / "rotated.jpg", exif=tags)
    Image.fromarray(np.full((100, 150), 257 * 40, np.uint16)).save(folder / "deep.tif")
    Image.new("RGBA", (150, 100), (255, 0, 0, 0)).save(folder / "alpha.png")
    shutil.copy(ROOT / "tests/data/photo.heic", folder / "phone.HEIC")
    tifffile.imwrite(folder / "bands.tif", np.ones((100, 150, 5), np.uint8), photometric="minisblack")
    return tmp_path / "data"


def test_a_copy_has_short_sides_of_at_most_the_given_size(mixed, tmp_path):
    target = tmp_path / "to"
    assert resize_copy(mixed, target, 50, 90, workers=1) == (7, 3)
    folder = target / "train/a"
    # what is small enough, and what would lose bits or channels
    unchanged = ("small.jpg", "deep.tif", "bands.tif", "phone.HEIC")
    assert all((folder / name).read_bytes() == (mixed / "train/a" / name).read_bytes() for name in unchanged)
    found = {p.name: (Image.open(p).format, Image.open(p).size) for p in folder.iterdir() if p.name not in unchanged}
    resized = {"large.png": ("PNG", (75, 50)), "rotated.jpg": ("JPEG", (50, 75)), "alpha.png": ("PNG", (75, 50))}
    assert found == resized
    alpha = Image.open(folder / "alpha.png")
    assert alpha.mode == "RGBA" and alpha.getpixel((9, 9)) == (255, 0, 0, 0)  # the colour below transparency too
    assert Image.open(folder / "rotated.jpg").getexif()[ORIENTATION] == 6
    stamps = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert resize_copy(mixed, target, 50, 90, workers=1) == (7, 0)  # all of it is there
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == stamps


def test_copies_that_make_no_sense_are_refused(mixed, tmp_path):
    with raises(DataError, mixed / "small", mixed):
        resize_copy(mixed, mixed / "small", 50, 90, workers=1)
    with raises(DataError, "--short-side", 0):
        resize_copy(mixed, tmp_path / "to", 0, 90, workers=1)
    with raises(DataError, "--quality", 101):
        resize_copy(mixed, tmp_path / "to", 50, 101, workers=1)
    with raises(DataError, tmp_path / "gone", "no images"):
        resize_copy(tmp_path / "gone", tmp_path / "to", 50, 90, workers=1)
    (tmp_path / "to").mkdir()
    (tmp_path / "to/.resized").write_text("short side 30, quality 90")
    with raises(DataError, tmp_path / "to", "short side 30, quality 90"):
        resize_copy(mixed, tmp_path / "to", 50, 90, workers=1)
    (tmp_path / "file").touch()
    with raises(ResourceError, tmp_path / "file", "TARGET"):
        resize_copy(mixed, tmp_path / "file", 50, 90, workers=1)


def test_a_bad_image_ends_the_copy_with_its_path(mixed, tmp_path):
    (mixed / "train/a/large.png").write_bytes(b"")
    with raises(DataError, mixed / "train/a/large.png", "empty file"):
        resize_copy(mixed, tmp_path / "to", 50, 90, workers=1)


def test_a_bad_tiff_is_no_exception(mixed, tmp_path):
    path = mixed / "train/a/palette.tif"
    Image.new("P", (100, 150)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with raises(DataError, path):
        resize_copy(mixed, tmp_path / "to", 50, 90, workers=1)


def test_flat_validation_images_are_sorted_or_left_alone(photos, tmp_path):
    names = ["ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00015416.JPEG"]
    (tmp_path / "val").mkdir()
    for name in [*names, "mine.jpg"]:
        shutil.copy(photos / "val/class_0/photo_0.jpg", tmp_path / "val" / name)
    with raises(DataError, tmp_path / "val", "mine.jpg"):
        sort_validation(tmp_path)
    assert sorted(os.listdir(tmp_path / "val")) == [*names, "mine.jpg"]
    (tmp_path / "val/mine.jpg").unlink()
    assert sort_validation(tmp_path) == 2
    for label, name in zip((970, 13), names, strict=True):
        assert (tmp_path / "val" / imagenet_synsets()[label] / name).exists()
    assert sort_validation(tmp_path) == 0  # they are sorted
    with raises(DataError, tmp_path / "gone", "val/"):
        sort_validation(tmp_path / "gone")
