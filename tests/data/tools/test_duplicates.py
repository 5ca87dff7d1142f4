"""Near-duplicates of real photographs are found; different ones of one scene are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from data.sources.base import Record
from data.tools import duplicates
from data.tools.duplicates import joined, near_duplicates

PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]


class Images:
    """A source of encoded images."""

    def __init__(self, *images, **options):
        self.images = []
        for image in images:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=90, **options)
            self.images.append(stream.getvalue())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Record(self.images[i], None, self.name(i))

    def name(self, i):
        return f"{i}.jpg"


def test_one_photograph_stored_in_several_ways_is_one_group():
    photo = PHOTOS[0]
    source = Images(
        photo,
        PHOTOS[1],
        photo.resize((320, 213)),
        photo.crop((4, 3, 636, 424)),
        ImageEnhance.Brightness(photo).enhance(1.03),
    )
    stream, turned = io.BytesIO(), Image.Exif()
    turned[274] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=40, exif=turned)
    source.images += [stream.getvalue(), b"no image"]
    assert near_duplicates(source) == [[0, 2, 3, 4, 5]]


def test_different_photographs_are_not():
    crops = [photo.crop((x, y, x + 200, y + 200)) for photo in PHOTOS for x in (0, 150, 300) for y in (0, 100, 200)]
    plain = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "white")]
    mirrored = [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in PHOTOS]
    assert near_duplicates(Images(*crops, *plain, *mirrored, *PHOTOS)) == []


def test_of_very_many_images_the_equal_ones_are_found(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST", 3)
    assert near_duplicates(Images(*PHOTOS, *PHOTOS)) == [[0, 2], [1, 3]]
    assert near_duplicates(Images()) == []


def test_pairs_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr(duplicates, "ROWS", 2)
    source = Images(*PHOTOS, *PHOTOS, PHOTOS[0])
    assert near_duplicates(source) == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize(
    ("groups", "expected"), [([], [0, 1, 2, 3]), ([[2, 1], [3, 2]], [0, 1, 1, 1]), ([[0, 3]], [0, 1, 2, 0])]
)
def test_groups_are_joined(groups, expected):
    assert joined(4, groups) == expected
    assert np.unique(joined(4, groups)).size == len(set(expected))
