"""Class folders are written as train/ and val/, or as folds, with every image in one place of each."""

import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.tools.division import DivisionOptions
from data.tools.split_copy import split_copy
from tests.tools.builders import open_folder
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture
def photos(tmp_path):
    draw = np.random.default_rng(0)
    for name, number in (("cat", 10), ("dog", 5)):
        (tmp_path / "photos" / name / "more").mkdir(parents=True)
        for i in range(number):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / ("more" if i % 2 else "") / f"{i}.png")
    return tmp_path / "photos"


def images(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_a_split_can_be_trained_on(photos, tmp_path):
    target = tmp_path / "split"
    assert split_copy(photos, target, DivisionOptions()) == {str(target): (12, 3)}
    data = open_folder(target)
    assert (data.train.counts(), data.val.counts()) == ([8, 4], [2, 1])
    assert sorted(images(target / "train") + images(target / "val")) == images(photos)
    assert os.path.samefile(photos / "cat/0.png", next(target.rglob("cat/0.png")))  # linked


def test_every_image_is_held_out_by_one_fold(photos, tmp_path):
    target = tmp_path / "folds"
    assert split_copy(photos, target, DivisionOptions(), folds=5) == {f"{target}/fold_{i}": (12, 3) for i in range(5)}
    held_out = Counter(name for i in range(5) for name in images(target / f"fold_{i}/val"))
    assert sorted(held_out) == images(photos) and set(held_out.values()) == {1}


def test_without_links_files_are_copied(photos, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    split_copy(photos, tmp_path / "split", DivisionOptions())
    copy = next((tmp_path / "split").rglob("cat/0.png"))
    assert copy.read_bytes() == (photos / "cat/0.png").read_bytes() and not os.path.samefile(copy, photos / "cat/0.png")


def test_what_cannot_be_split_is_refused(photos, tmp_path):
    split_copy(photos, tmp_path / "split", DivisionOptions())
    for root, target, word in (
        (tmp_path / "split", tmp_path / "again", "without splits"),
        (photos, tmp_path / "split", "already exists"),
        (photos, photos / "split", "inside the original"),
    ):
        with raises(DataError, root if word == "without splits" else target, word):
            split_copy(root, target, DivisionOptions())
    assert not (tmp_path / "again").exists()
