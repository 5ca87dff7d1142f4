"""The stored list of samples: found again, made again when the data change."""

import logging
import pickle

import pytest

from data.sources import index
from data.sources.index import Index, stamp, stored
from tests.builders import open_folder


def test_samples_are_sorted_by_label_then_name():
    made = Index.build(["b/x", "a/z", "a/y\udcff"], [1, 0, 0], size=[1, 2, 3])
    assert [made.name(i) for i in range(3)] == ["a/y\udcff", "a/z", "b/x"]
    assert [made.label(i) for i in range(3)] == [0, 0, 1] and made.columns["size"].tolist() == [3, 2, 1]
    assert made.counts(3) == [2, 1, 0]


def test_the_digest_sees_names_labels_and_classes():
    digests = {
        Index.build(names, labels).digest(classes)
        for names, labels, classes in (
            (["a", "b"], [0, 1], ["x", "y"]),
            (["a", "c"], [0, 1], ["x", "y"]),
            (["ab", ""], [0, 1], ["x", "y"]),
            (["a", "b"], [0, 0], ["x", "y"]),
            (["a", "b"], [0, 1], ["x", "z"]),
        )
    }
    assert len(digests) == 5


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_stored_index_is_made_again_when_its_data_change(tmp_path, cache):
    made = []
    data = tmp_path / "data"
    data.mkdir()

    def build():
        made.append(1)
        return (
            Index.build([p.name for p in data.iterdir()] or ["none"], [0] * max(1, len(list(data.iterdir())))),
            ["extra"],
            [stamp(data)],
        )

    assert [len(stored("key", build)[0]) for _ in range(2)] == [1, 1] and len(made) == 1
    (data / "x").touch()
    (data / "y").touch()
    found, extra = stored("key", build)
    assert len(found) == 2 and extra == ["extra"] and len(made) == 2
    assert stored("other key", build) and len(made) == 3
    for file in cache.rglob("meta.json"):
        file.write_text("{")  # a damaged one counts as none
    assert len(stored("key", build)[0]) == 2 and len(made) == 4


def test_a_folder_is_walked_once(own_photos, cache, monkeypatch):
    first = open_folder(own_photos).identity()
    with monkeypatch.context() as patch:
        patch.setattr("data.sources.folders.images_below", None)  # would fail if it were called
        assert open_folder(own_photos).identity() == first
    (own_photos / "train/class_1/photo_3.jpg").unlink()
    counts = open_folder(own_photos).identity()[1]
    assert counts == (12, 11, 12)


def test_without_a_place_to_store_it_works_and_says_so(own_photos, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert len(open_folder(own_photos).train) == 36
    assert "cannot cache the list of samples" in caplog.text


def test_another_process_gets_the_place_not_the_arrays(own_photos, cache):
    source = open_folder(own_photos).train
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    assert [pickle.loads(sent).name(i) for i in range(36)] == [source.name(i) for i in range(36)]
    assert index.cache_folder().is_relative_to(cache)
