"""What zip and tar archives share: reads at offsets, labels from folders, the page cache."""

import os
import pickle
import resource
from pathlib import Path

import pytest

from data.sources.archive import OTHER_FILES, SharedFiles, below_split, fill_page_cache, label_by_folder
from tests.tools.builders import in_child
from tests.tools.errors import raises
from utils.errors import DataError


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    return tmp_path / "a"


def test_reads_have_no_position_and_stop_at_the_end(file):
    shared = SharedFiles([file])
    assert [shared.read(0, *at) for at in ((10, 3), (0, 2), (98, 9))] == [b"\x0a\x0b\x0c", b"\x00\x01", b"\x62\x63"]


def test_it_is_sent_to_other_processes_as_its_path(file):
    shared = SharedFiles([file])
    shared.read(0, 0, 1)
    assert pickle.loads(pickle.dumps(shared)).read(0, 5, 1) == b"\x05"


def test_fault_48_a_forked_process_opens_the_file_itself(file):
    """It finds the file of that name as it is now, not the parent's descriptor."""
    shared = SharedFiles([file])
    shared.read(0, 0, 1)
    (file.parent / "b").write_bytes(b"x" * 100)
    os.replace(file.parent / "b", file)
    child = os.fork()
    if child == 0:
        os._exit(shared.read(0, 0, 1)[0])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ord("x")
    assert shared.read(0, 1, 1) == b"\x01"  # the parent still reads the old one


def test_opening_is_left_to_the_first_read(tmp_path):
    shared = SharedFiles([tmp_path / "gone"])
    with pytest.raises(FileNotFoundError):
        shared.read(0, 0, 1)


def test_fault_53_the_number_of_open_archives_is_bounded(tmp_path):
    paths = [tmp_path / str(i) for i in range(300)]
    for i, path in enumerate(paths):
        path.write_bytes(i.to_bytes(2, "big"))

    def read_all():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        splits = SharedFiles(paths), SharedFiles(paths)
        before = len(os.listdir("/proc/self/fd"))
        for i in [*range(300), *range(300), 299, 0]:
            assert [split.read(i, 0, 2) for split in splits] == [i.to_bytes(2, "big")] * 2
        opened = len(os.listdir("/proc/self/fd")) - before
        assert 2 * 8 < opened <= 256 - OTHER_FILES, opened  # and they are kept open

    assert in_child(read_all) == (0, "")


def bytes_read():
    """Bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_each_rank_reads_its_part_into_the_page_cache(tmp_path):
    (tmp_path / "a.zip").write_bytes(bytes(3_000_001))
    before = bytes_read()
    overhead = bytes_read() - before  # of asking
    parts = []
    for rank in range(3):
        before = bytes_read()
        fill_page_cache(tmp_path / "a.zip", rank, 3)
        parts.append(bytes_read() - before - overhead)
    assert sum(parts) == pytest.approx(3_000_001, abs=300) and max(parts) - min(parts) < 300


def test_the_splits_folder_is_stripped_if_everything_is_in_it():
    assert below_split(["val/a/1.jpg", "val/b/2.jpg"], "val") == ["a/1.jpg", "b/2.jpg"]
    assert below_split(["val/a/1.jpg", "b/2.jpg"], "val") == ["val/a/1.jpg", "b/2.jpg"]


def test_labels_come_from_the_first_folder():
    names = ["b/x.jpg", "a/deep/y.jpg", "b/z.jpg"]
    assert label_by_folder(names, None, Path("z")) == (names, [1, 0, 1], ["a", "b"])
    assert label_by_folder(names, ["b", "c", "a"], Path("z")) == (names, [0, 2, 0], ["b", "c", "a"])
    with raises(DataError, "z", "1 class is", ": a"):
        label_by_folder(names, ["b"], Path("z"))
    with raises(DataError, "z", "x.jpg"):
        label_by_folder(["x.jpg", "a/y.jpg"], None, Path("z"))
    with raises(DataError, "z", "no images"):
        label_by_folder([], None, Path("z"))
