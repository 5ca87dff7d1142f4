"""Synthetic images: different for every sample, the same in every run."""

import io

import numpy as np
from PIL import Image

from data.sources.synthetic import SyntheticStore
from tests.tools.builders import open_data


def test_synthetic_images_differ_and_repeat():
    sources = open_data("synthetic", "", classes=10)
    assert sources.train[0].data == sources.train[0].data != sources.train[1].data != sources.val[1].data
    image = Image.open(io.BytesIO(sources.val[3].data))
    assert image.size == (256, 256) and np.asarray(image).std() > 60
    assert sources.val.label(13) == 3 and sources.val.counts() == [1000] * 10


def test_the_splits_are_imagenet_sized_and_tell_themselves_apart():
    store = SyntheticStore()
    train, val = store.open("train"), store.open("val")
    assert (len(train), len(val), len(train.class_names)) == (100_000, 10_000, 1000)
    assert store.has("val") and not store.has("test") and store.class_names("val")[-1] == "999"
    assert train.name(7) == "synthetic train image 7"
    assert train.fingerprint() == store.open("train").fingerprint() != val.fingerprint()
    assert store.open("train", ["a", "b"]).counts() == [50_000, 50_000]
