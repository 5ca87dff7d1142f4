"""Files, links and folders that appear whole or not at all."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from tests.tools.errors import raises
from utils.errors import ResourceError
from utils.files import (
    atomic_path,
    flush_to_disk,
    quoted,
    remove_temporaries,
    sha256_of,
    short_stem,
    write_text,
    writing,
)


def make_file(path):
    path.write_text("new")


def make_link(path):
    path.symlink_to("elsewhere")


def make_folder(path):
    path.mkdir()
    (path / "inside").write_text("new")


@pytest.fixture
def calls(monkeypatch):
    """What is flushed and renamed, in order: paths relative to the test's folder."""
    seen = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor):
        seen.append(("flush", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def rename(source, target):
        seen.append(("rename", os.path.basename(source), os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    return seen


def test_fault_12_a_file_is_flushed_before_its_rename_and_its_folder_after(tmp_path, calls):
    target = tmp_path / "a.pth"
    target.write_text("old")
    with atomic_path(target) as temporary:
        make_file(temporary)
        assert target.read_text() == "old" and not calls
    assert calls == [("flush", temporary.name), ("rename", temporary.name, "a.pth"), ("flush", tmp_path.name)]
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["a.pth"]
    assert temporary.name.startswith(".a.") and temporary.name.endswith(".tmp.pth")  # hidden, of the same kind


@pytest.mark.parametrize("make", [make_link, make_folder])
def test_links_and_folders_appear_by_a_rename(tmp_path, calls, make):
    target = tmp_path / "best"
    with atomic_path(target) as temporary:
        make(temporary)
    assert calls == [("rename", temporary.name, "best"), ("flush", tmp_path.name)]
    assert os.listdir(tmp_path) == ["best"] and target.is_symlink() == (make is make_link)


def test_a_link_replaces_a_link(tmp_path):
    for name in ("one", "other"):
        with atomic_path(tmp_path / "last.pth") as temporary:
            temporary.symlink_to(name)
    assert (tmp_path / "last.pth").readlink().name == "other"


@pytest.mark.parametrize("make", [make_file, make_link, make_folder])
def test_an_error_leaves_the_target_untouched_and_no_temporary(tmp_path, make):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        make(temporary)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_flush_or_rename_leaves_the_target_untouched(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, call, full)
        write_text(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_with_contents_is_not_replaced(tmp_path):
    make_folder(tmp_path / "a")
    with pytest.raises(OSError, match="not empty|exists"), atomic_path(tmp_path / "a") as temporary:
        make_folder(temporary)
    assert os.listdir(tmp_path) == ["a"]


def test_temporaries_of_a_killed_process_are_removed(tmp_path):
    pid = os.fork()
    if pid == 0:
        with atomic_path(tmp_path / "a.pth") as temporary:
            make_file(temporary)
            os._exit(0)
    os.waitpid(pid, 0)
    make_folder(tmp_path / ".b.0123.tmp")
    (tmp_path / "kept.pth").touch()
    assert len(os.listdir(tmp_path)) == 3
    remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["kept.pth"]


def test_text_that_is_not_unicode_is_escaped(tmp_path):
    write_text(tmp_path / "a", "caf\udce9 é")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "caf\\udce9 é"
    assert sha256_of(tmp_path / "a") == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_a_file_is_written_with_its_folders_or_the_option_is_named(tmp_path):
    with writing(tmp_path / "new/a.txt", "--output") as temporary:
        make_file(temporary)
    assert (tmp_path / "new/a.txt").read_text() == "new"
    target = tmp_path / "new/a.txt/b"
    with raises(ResourceError, target, os.strerror(errno.EEXIST), "--output"), writing(target, "--output"):
        pass


def test_errors_of_the_library_that_writes_count_if_they_are_named(tmp_path):
    with raises(ResourceError, tmp_path / "a", "odd shapes", "A"), writing(tmp_path / "a", "A", KeyError):
        raise KeyError("odd shapes") from None
    with pytest.raises(KeyError), writing(tmp_path / "a", "A"):
        raise KeyError("odd shapes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a" * 251 + ".jpg", "\u00e9" * 120 + ".png", "x." + "b" * 250])
def test_a_name_of_any_length_can_be_replaced(tmp_path, name):
    target = tmp_path / name
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new" and len(os.fsencode(f"12_{short_stem(target)}.png")) <= 255


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed_is_tolerated_but_not_a_file(tmp_path, monkeypatch, number):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    flush_to_disk(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match=os.strerror(number)):
        flush_to_disk(tmp_path / "a")


def test_paths_are_quoted_for_the_shell():
    assert [quoted(path) for path in ("a b", "$(date)", Path("plain/path"))] == ["'a b'", "'$(date)'", "plain/path"]
