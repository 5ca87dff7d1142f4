"""What every source does alike: retries, and the check of class names."""

import builtins
import errno
import pickle
from pathlib import Path

import pytest

from data.sources import base
from data.sources.base import IndexedSource, check_classes
from data.sources.files import FileSource
from data.sources.index import Index
from data.sources.pairs import PairSource
from tests.tools.builders import open_folder
from tests.tools.errors import raises
from utils.errors import DataError


class Flaky:
    """A storage that fails a number of times before it returns the name of the sample."""

    def __init__(self, code, failures):
        self.code, self.failures, self.reads = code, failures, 0

    def read(self, index, i):
        self.reads += 1
        if self.reads <= self.failures:
            raise OSError(self.code, "broken")
        return index.name(i).encode()

    def where(self, name):
        return f"disk/{name}"


def source_of(storage):
    return IndexedSource(Index.build(["b.jpg", "a.jpg", "c.jpg"], [2, 0, 2]), ["x", "y", "z"], storage)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("data.sources.base.PAUSES", (0.0, 0.0))


@pytest.mark.parametrize(("failures", "works"), [(2, True), (3, False)])
def test_fault_51_transient_read_errors_are_retried(photos, monkeypatch, failures, works):
    source = open_folder(photos).train
    real, left = builtins.open, [failures]

    def failing(path, *more, **options):
        if str(path).endswith(".jpg") and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *more, **options)

    monkeypatch.setattr(builtins, "open", failing)
    if works:
        assert source[0].data[:2] == b"\xff\xd8" and left == [0]
    else:
        with raises(DataError, source.name(0), "Input/output error"):
            _ = source[0]


@pytest.mark.parametrize("kind", ["files", "pairs"])
def test_files_and_label_maps_are_read_again_too(tmp_path, monkeypatch, kind):
    (tmp_path / "a.png").write_bytes(b"a")
    path = tmp_path / "a.png"
    source = FileSource([path]) if kind == "files" else PairSource(tmp_path, [("a.png", "a.png")])
    real, left = base.read_file, [2]

    def failing(path):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(f"data.sources.{kind}.read_file", failing)
    assert source[0].data == b"a"


@pytest.mark.parametrize(("code", "reads"), [(errno.EIO, 3), (errno.ENOENT, 1), (errno.EACCES, 1), (errno.EISDIR, 1)])
def test_fault_51_permanent_errors_are_not_retried(code, reads):
    storage = Flaky(code, failures=9)
    with raises(DataError, "disk/a.jpg", "broken"):
        _ = source_of(storage)[0]
    assert storage.reads == reads


def test_samples_are_addressed_by_index():
    source = source_of(Flaky(0, failures=0))
    assert [source[i].data for i in range(len(source))] == [b"a.jpg", b"b.jpg", b"c.jpg"]
    assert [source.label(i) for i in range(3)] == [0, 2, 2] and source.counts() == [1, 0, 2]
    assert source.name(1) == "disk/b.jpg" and source.class_names == ("x", "y", "z")
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()


def test_classes_that_are_not_known_are_listed():
    check_classes(["a", "b"], ["b", "c", "a"], Path("val"))
    with raises(DataError, "val", "2 classes", 1, "b, c"):
        check_classes(["c", "a", "b"], ["a"], Path("val"))
    with raises(DataError, "val", "1 class is not", "Church", "did you mean church?"):
        check_classes(["Church", "church"], ["church"], Path("val"))
