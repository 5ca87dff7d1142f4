"""Images with objects from any layout: the same samples, cached, and what is trained on."""

import pickle

import numpy as np
import pytest

from data.sources.instances import AnnotatedImage, Instance
from data.sources.object_store import ObjectStore, Trained
from tests.data.sources.object_sets import WRITERS, made, write_coco
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_objects(tmp_path, layout):
    WRITERS[layout](tmp_path, {"train": 3, "val": 2})
    source = ObjectStore(tmp_path).open("train", ("red", "blue"))
    assert len(source) == 3 and source.class_names == ("red", "blue") and (source.unshaped() == 0) == (layout == "coco")
    for i, expected in enumerate(made("train", 3)):
        record = source[i]
        assert record.name == source.name(i) and record.name.endswith(f"{expected.stem}.png")
        assert record.target.size == expected.pixels.shape[:2] == tuple(source.sizes()[i])
        found = [(one.label, *one.box) for one in record.target.instances]
        np.testing.assert_allclose(found, expected.objects, atol=1e-9)
    labels = [label for each in made("train", 3) for label, *_ in each.objects]
    assert source.counts == (labels.count(0), labels.count(1))


def test_an_index_is_cached_until_an_annotation_changes(tmp_path):
    write_coco(tmp_path, {"train": 2})
    before = ObjectStore(tmp_path).open("train")
    again = ObjectStore(tmp_path).open("train")
    assert len(pickle.dumps(again)) < 1000 and again.fingerprint() == before.fingerprint()
    write_coco(tmp_path, {"train": 3})
    after = ObjectStore(tmp_path).open("train")
    assert len(after) == 3 and after.fingerprint() != before.fingerprint()


def test_images_without_objects_are_trained_on_if_asked(tmp_path):
    write_coco(tmp_path, {"train": 4}, empty=1)
    store = ObjectStore(tmp_path)
    source = store.open("train", rule=Trained())
    assert len(source) == 3 and source.omitted == ("1 image without objects, or smaller than 32 pixels",)
    assert len(store.open("train", rule=Trained(empty=True))) == len(store.open("train")) == 4
    smaller = store.open("train", rule=Trained(70, empty=True))
    assert smaller.sizes().min() >= 70 and smaller.omitted[0].endswith("smaller than 70 pixels")
    assert sum(smaller.counts) == sum(len(smaller.image(i).instances) for i in range(len(smaller)))
    write_coco(tmp_path, {"train": 1}, empty=1)
    with raises(DataError, tmp_path / "annotations/instances_train2017.json", "no train images", "DATA.KEEP_EMPTY"):
        store.open("train", rule=Trained())


def test_an_image_with_a_crowd_alone_is_trained_on():
    crowd = Instance((0, 0, 40, 40), 0, None, True)
    assert Trained().holds(AnnotatedImage(1, "a", (40, 40), (crowd,)))
    assert not Trained().holds(AnnotatedImage(1, "a", (40, 40), ()))
    assert not Trained().holds(AnnotatedImage(1, "a", (31, 90), (crowd,)))


@pytest.mark.parametrize("name", ["gone", "there"])
def test_a_folder_without_annotations_is_an_error(tmp_path, name):
    (tmp_path / "there/images").mkdir(parents=True)
    with raises(DataError, tmp_path / name, "no such folder" if name == "gone" else "contains no annotations"):
        ObjectStore(tmp_path / name)


def test_a_missing_split_is_an_error(tmp_path):
    write_coco(tmp_path, {"train": 1})
    store = ObjectStore(tmp_path)
    assert not store.has("val")
    with raises(DataError, tmp_path, "has no val images"):
        store.open("val")
