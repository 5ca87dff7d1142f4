"""The stored list of samples: found again, made again when the data change."""

import logging
import logging.handlers
import multiprocessing
import os
import pickle
import time

import pytest

from data.sources import index
from data.sources.folders import FolderStore
from data.sources.index import Index, stamp, stored
from data.sources.unlabelled import UnlabelledStore
from tests.tools.builders import open_folder
from utils.files import cache_folder


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
    counts = open_folder(own_photos).identity().counts
    assert counts == (12, 11, 12)


@pytest.mark.parametrize("labelled", [True, False])
def test_what_arrives_while_a_folder_is_walked_is_found_by_the_next_start(own_photos, cache, monkeypatch, labelled):
    late, seen = own_photos / "train/class_0/late.jpg", []

    def is_image(name):
        seen.append(name)
        if len(seen) == 13:  # the first image of the second class
            before = index.stamp(late.parent)
            while index.stamp(late.parent) == before:  # clocks of file systems tick
                late.unlink(missing_ok=True)
                late.write_bytes((own_photos / "train/class_0/photo_0.jpg").read_bytes())
        return name.endswith(".jpg")

    def count():
        store = FolderStore(own_photos) if labelled else UnlabelledStore(own_photos)
        return len(store.open("train"))

    monkeypatch.setattr("data.sources.folders.is_image", is_image)
    assert (count(), late.exists(), count()) == (36, True, 37)


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
    assert cache_folder("index").is_relative_to(cache)


class Machine:
    """A machine whose disk has its own data under the path that all use; the cache is shared."""

    def __init__(self, disk, names):
        self.disk, self.built = disk, 0
        disk.mkdir()
        for name in names:
            (disk / name).touch()

    def open(self, path):
        path.unlink(missing_ok=True)
        path.symlink_to(self.disk)
        index, extra = stored("key", lambda: self.build(path))
        return [index.name(i) for i in range(len(index))], extra

    def build(self, path):
        self.built += 1
        names = os.listdir(path)
        return Index.build(names, [0] * len(names)), [self.disk.name], [stamp(path)]


def test_machines_that_share_the_cache_do_not_take_it_from_each_other(tmp_path, cache):
    machines = [Machine(tmp_path / "disk0", ["a", "b"]), Machine(tmp_path / "disk1", ["a", "b", "c"])]
    for _ in range(4):
        for machine in machines:
            names, extra = machine.open(tmp_path / "data")
            assert names == sorted(os.listdir(machine.disk)) and extra == [machine.disk.name]
    assert [machine.built for machine in machines] == [1, 1]
    assert len(os.listdir(cache_folder("index"))) == 2


def test_an_index_that_nobody_opens_any_more_is_removed(tmp_path, cache, monkeypatch):
    old, new = Machine(tmp_path / "disk0", ["a"]), Machine(tmp_path / "disk1", ["a", "b"])
    old.open(tmp_path / "data")
    (meta,) = cache.rglob("meta.json")
    os.utime(meta, (0, time.time() - index.UNUSED - 60))
    new.open(tmp_path / "data")
    assert not meta.exists() and len(os.listdir(cache_folder("index"))) == 1
    old.open(tmp_path / "data")
    assert old.built == 2 and len(os.listdir(cache_folder("index"))) == 2


@pytest.mark.parametrize("damage", ["no meta", "half a meta", "no array", "half an array", "an empty array", "empty"])
def test_a_torn_folder_is_replaced(tmp_path, cache, caplog, damage):
    machine = Machine(tmp_path / "disk", ["a", "b"])
    machine.open(tmp_path / "data")
    (folder,) = cache_folder("index").iterdir()
    files = {"meta": folder / "meta.json", "array": folder / "ends.npy"}
    if damage == "empty":
        for file in folder.iterdir():
            file.unlink()
    elif damage.startswith("no"):
        files[damage.split()[-1]].unlink()
    else:
        os.truncate(files[damage.split()[-1]], 0 if "empty" in damage else 60)
    for _ in range(3):
        assert machine.open(tmp_path / "data")[0] == ["a", "b"]
    assert machine.built <= 3 and [path.name for path in cache_folder("index").iterdir()] == [folder.name]
    built = machine.built
    machine.open(tmp_path / "data")
    assert machine.built == built  # it is whole again


@pytest.mark.parametrize("name", ["meta.json", "ends.npy"])
@pytest.mark.parametrize(
    "content",
    [b'{"stamps": [[]]}', b"[" * 100_000, b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00v\x00{'descr': (" + b"(" * 200],
    ids=["empty stamp", "deep", "archive", "header"],
)
def test_a_corrupt_file_is_replaced(tmp_path, cache, name, content):
    machine = Machine(tmp_path / "disk", ["a", "b"])
    machine.open(tmp_path / "data")
    (folder,) = cache_folder("index").iterdir()
    (folder / name).write_bytes(content)
    for _ in range(3):
        assert machine.open(tmp_path / "data")[0] == ["a", "b"]
    built = machine.built
    machine.open(tmp_path / "data")
    assert machine.built == built <= 3  # it is whole again


def open_at_once(folder, barrier, results):
    """Opens it twice; sends what was found and logged."""

    def build():
        time.sleep(0.01)
        return Index.build([f"{i}.jpg" for i in range(1000)], [0] * 1000), [], [stamp(folder)]

    handler = logging.handlers.BufferingHandler(1000)
    logging.getLogger().addHandler(handler)
    try:
        barrier.wait()
        found = [stored("key", build)[0] for _ in range(2)]
        names = [(each.name(0), each.name(999), len(each)) for each in found]
        results.put((names, [record.getMessage() for record in handler.buffer]))
    except BaseException as e:
        results.put((repr(e), []))


@pytest.mark.parametrize("torn", [False, True])
def test_processes_that_open_it_at_once_all_get_it(tmp_path, cache, torn):
    """Of a torn folder, some can only say that they could not store theirs."""
    data = tmp_path / "data"
    data.mkdir()
    if torn:
        stored("key", lambda: (Index.build(["0.jpg"], [0]), [], [stamp(data)]))
        (meta,) = cache.rglob("meta.json")
        meta.write_text("{")
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(8), fork.Queue()
    processes = [fork.Process(target=open_at_once, args=(data, barrier, results)) for _ in range(8)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(10)
    assert [names for names, _ in found] == [[("0.jpg", "999.jpg", 1000)] * 2] * 8
    messages = [message for _, logged in found for message in logged]
    assert (torn or not messages) and all("cannot cache the list of samples" in message for message in messages)
    if not torn:
        stored("key", lambda: pytest.fail("it was not stored"))
    assert len(os.listdir(cache_folder("index"))) <= 1 and not list(cache_folder("index").glob(".*"))
