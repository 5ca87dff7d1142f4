"""The handwritten digits, written once with a fixed split."""

import pytest
from PIL import Image

from data.sources.digits import write_digits
from tests.tools.builders import open_data
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits; do not change."""
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def test_digits_are_written_once_with_a_fixed_split(digits):
    sources = open_data("digits", digits)
    assert (len(sources.train), len(sources.val)) == (1437, 360)
    assert sources.class_names == tuple("0123456789")
    assert min(sources.val.counts()) >= 35 and max(sources.val.counts()) <= 37  # stratified
    stamp = (digits / "train").stat().st_mtime_ns
    assert write_digits(digits) == digits and (digits / "train").stat().st_mtime_ns == stamp
    assert [p.name for p in digits.parent.iterdir()] == ["digits"]


def test_the_darkest_ink_is_white(digits):
    with Image.open(next((digits / "train/0").iterdir())) as image:
        assert image.size == (8, 8) and image.mode == "L"
        assert image.getextrema() == (0, 255)


def test_a_folder_with_some_of_the_digits_is_taken_as_it_is(digits, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "some" / split).mkdir(parents=True)
        for name in "03":
            (tmp_path / "some" / split / name).symlink_to(digits / split / name)
    sources = open_data("digits", tmp_path / "some")
    assert sources.class_names == ("0", "3") and len(list((tmp_path / "some").iterdir())) == 2


def test_digits_do_not_overwrite_another_folder(tmp_path):
    (tmp_path / "x").mkdir()
    with raises(DataError, tmp_path / "x", "--data-path"):
        write_digits(tmp_path / "x")
    (tmp_path / "file").touch()
    with raises(DataError, tmp_path / "file" / "x", "cannot be written", "--data-path"):
        write_digits(tmp_path / "file" / "x")
