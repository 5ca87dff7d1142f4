"""Checkpoint files: whole, verified, found by number."""

import errno
import hashlib
import os
import pickle
import resource
import signal
import time

import pytest
import torch

from tests.tools.errors import raises
from utils.checkpoints.files import (
    check_space,
    checkpoint_name,
    find_newest,
    follow,
    list_checkpoints,
    point_to,
    read_checkpoint,
    remove_leftovers,
    remove_old,
    save_checkpoint,
    supports_links,
)
from utils.errors import CheckpointError, ResourceError


def save(folder, epoch, step=None):
    return save_checkpoint(folder, checkpoint_name(epoch, step), {"model": {"a": torch.full((999,), float(epoch))}})


def test_what_is_saved_is_read_and_has_a_checksum(tmp_path):
    path = save(tmp_path / "new", 3)
    assert torch.equal(read_checkpoint(path)["model"]["a"], torch.full((999,), 3.0))
    line = (tmp_path / "new" / "ckpt_epoch_3.pth.sha256").read_text()
    assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ckpt_epoch_3.pth\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["ckpt_epoch_3.pth", "ckpt_epoch_3.pth.sha256"]


def test_order_is_by_number_never_by_time(tmp_path):
    for epoch, step in ((10, None), (9, None), (10, 5), (2, 100), (2, 20)):
        save(tmp_path, epoch, step)
        time.sleep(0.01)
    names = [p.name for p in list_checkpoints(tmp_path)]
    assert names == [
        "ckpt_epoch_10.pth",
        "ckpt_epoch_10_step_5.pth",
        "ckpt_epoch_9.pth",
        "ckpt_epoch_2_step_100.pth",
        "ckpt_epoch_2_step_20.pth",
    ]


def test_fault_18_foreign_files_are_ignored(tmp_path):
    path = save(tmp_path, 1)
    torch.save({"model": {}}, tmp_path / "foo.pth")
    torch.save({"model": {}}, tmp_path / "ckpt_epoch_9_final.pth")
    found = find_newest(tmp_path)
    assert found is not None and found[0] == path


def test_fault_14_a_checksum_that_is_no_text_differs(tmp_path, caplog):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    second.with_name(second.name + ".sha256").write_bytes(b"\xff" * 70)
    with raises(CheckpointError, second, "checksum"):
        read_checkpoint(second)
    found = find_newest(tmp_path)
    assert found is not None and found[0] == first and "not resuming from" in caplog.text
    save(tmp_path, 2)
    assert read_checkpoint(second)


def test_links_point_at_a_file_beside_them(tmp_path):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    for target in (first, second):
        point_to(tmp_path / "last.pth", target)
        assert (tmp_path / "last.pth").readlink().name == target.name
    assert torch.equal(read_checkpoint(tmp_path / "last.pth")["model"]["a"], torch.full((999,), 2.0))


@pytest.fixture
def no_links(monkeypatch):
    """A file system without symbolic links."""

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)


def test_without_links_a_text_file_holds_the_name(tmp_path, no_links):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    for target in (first, second):
        point_to(tmp_path / "last.pth", target)
        assert (tmp_path / "last.txt").read_text() == target.name + "\n"
        assert follow(tmp_path / "last.pth") == target
    assert torch.equal(read_checkpoint(tmp_path / "last.pth")["model"]["a"], torch.full((999,), 2.0))
    assert not (tmp_path / "last.pth").is_symlink() and not list(tmp_path.glob(".*"))
    assert follow(tmp_path / "other.pth") == tmp_path / "other.pth"
    assert [p.name for p in list_checkpoints(tmp_path)] == [second.name, first.name]
    os.truncate(second, 100)  # the checksum of the file that is meant is verified
    with raises(CheckpointError, second, "checksum"):
        read_checkpoint(tmp_path / "last.pth")


def test_a_link_takes_the_place_of_the_text_file(tmp_path, monkeypatch, no_links):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    point_to(tmp_path / "best.pth", first)
    monkeypatch.undo()
    point_to(tmp_path / "best.pth", second)
    assert not (tmp_path / "best.txt").exists() and (tmp_path / "best.pth").readlink().name == second.name
    assert follow(tmp_path / "best.pth") == tmp_path / "best.pth"


def test_whether_there_are_links_is_tried(tmp_path, monkeypatch):
    (tmp_path / ".link").symlink_to("left by a killed process")
    assert supports_links(tmp_path) and not list(tmp_path.iterdir())
    assert not supports_links(tmp_path / "gone")


def test_neither_link_nor_text_is_a_warning_only(tmp_path, no_links, monkeypatch, caplog):
    path = save(tmp_path, 1)
    monkeypatch.setattr(os, "replace", os.symlink)
    point_to(tmp_path / "last.pth", path)
    assert "cannot point" in caplog.text and "Operation not permitted" in caplog.text
    assert find_newest(tmp_path)[0] == path and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("links", [True, False])
def test_the_newest_and_the_best_are_kept(tmp_path, request, links):
    if not links:
        request.getfixturevalue("no_links")
    for epoch in range(6):
        path = save(tmp_path, epoch)
        if epoch == 1:
            point_to(tmp_path / "best.pth", path)
    remove_old(tmp_path, keep=0)
    assert len(list_checkpoints(tmp_path)) == 6
    remove_old(tmp_path, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == [f"ckpt_epoch_{e}.pth" for e in (5, 4, 1)]
    assert len(list(tmp_path.glob("*.sha256"))) == 3


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_fault_13_a_truncated_newest_is_passed_over(tmp_path, caplog, share):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    os.truncate(bad, int(bad.stat().st_size * share))
    found = find_newest(tmp_path)
    assert found is not None and found[0] == good
    assert len(caplog.records) == 1 and "ckpt_epoch_2.pth" in caplog.text
    with raises(CheckpointError, bad, "checksum"):
        read_checkpoint(bad)
    bad.with_name(bad.name + ".sha256").unlink()
    with raises(CheckpointError, bad):
        read_checkpoint(bad)


def test_fault_14_a_flipped_bit_is_noticed(tmp_path):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    found = find_newest(tmp_path)
    assert found is not None and found[0] == good


def test_a_run_whose_checkpoints_are_all_bad_does_not_start_over(tmp_path):
    save(tmp_path, 1).write_bytes(b"")
    with raises(CheckpointError, tmp_path, 1, "--tag"):
        find_newest(tmp_path)
    assert find_newest(tmp_path / "empty") is None


def test_leftovers_of_an_interrupted_save_are_removed(tmp_path):
    path = save(tmp_path, 1)
    (tmp_path / ".ckpt_epoch_2.0a1b2c3d.tmp.pth").write_bytes(b"half")
    (tmp_path / "ckpt_epoch_2.pth.tmp").write_bytes(b"half")  # of earlier versions
    (tmp_path / "ckpt_epoch_2.pth.sha256").write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]


class Evil:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_fault_19_a_malicious_file_is_named_and_not_executed(tmp_path, form):
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Evil(canary)}, protocol=2))
    else:
        torch.save({"model": Evil(canary)}, path, _use_new_zipfile_serialization=form == "zip")
    with raises(CheckpointError, path, f"{os.mkdir.__module__}.mkdir"):
        read_checkpoint(path)
    assert not canary.exists()


def test_other_unusable_files_are_refused(tmp_path):
    with raises(CheckpointError, tmp_path / "gone.pth", os.strerror(errno.ENOENT)):
        read_checkpoint(tmp_path / "gone.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with raises(CheckpointError, tmp_path / "list.pth", "list"):
        read_checkpoint(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    with raises(CheckpointError, tmp_path / "text.pth"):
        read_checkpoint(tmp_path / "text.pth")
    with raises(CheckpointError, tmp_path, os.strerror(errno.EISDIR)):
        read_checkpoint(tmp_path)


def refuse(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_fault_15_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, call):
    path = save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse(errno.ENOSPC))
        with raises(ResourceError, tmp_path / "ckpt_epoch_2.pth", os.strerror(errno.ENOSPC), "MiB", "OUTPUT"):
            save(tmp_path, 2)
    assert find_newest(tmp_path)[0] == path
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_fault_15_a_failed_save_leaves_an_earlier_file_of_that_name_intact(tmp_path, monkeypatch, at):
    """An evaluation that is cut short twice saves the same name twice."""
    path, original = save(tmp_path, 1), getattr(os, at)

    def full(what, *rest):
        name = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
        if name.endswith(".tmp.pth"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(what, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, at, full)
        with raises(ResourceError, path, os.strerror(errno.ENOSPC)):
            save_checkpoint(tmp_path, path.name, {"model": {"a": torch.zeros(3)}})
    assert find_newest(tmp_path)[0] == path


def test_a_link_that_cannot_be_replaced_does_not_hide_the_text_file(tmp_path, request):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    point_to(tmp_path / "last.pth", first)
    request.getfixturevalue("no_links")
    point_to(tmp_path / "last.pth", second)
    assert follow(tmp_path / "last.pth").resolve() == second


def test_fault_15_a_disk_that_fills_while_a_file_is_written(tmp_path):
    """A real limit, of a child process: files may have 4,000 bytes."""
    path = save(tmp_path, 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
            save_checkpoint(tmp_path, checkpoint_name(2), {"model": {"a": torch.zeros(9999)}})
        except ResourceError as e:
            hidden = list(tmp_path.glob(".*"))
            named = e.subject == str(tmp_path / checkpoint_name(2)) and os.strerror(errno.EFBIG) in e.problem
            code = e.exit_code if named else 2
            code = code if not hidden else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert find_newest(tmp_path)[0] == path
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]


def test_fault_17_a_read_only_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.open", refuse(errno.EROFS))
    with raises(ResourceError, tmp_path / "ckpt_epoch_1.pth", os.strerror(errno.EROFS), "OUTPUT"):
        save(tmp_path, 1)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keep", "there", "needed"),
    [(3, 0, 50), (3, 2, 30), (3, 5, 10), (3, 9, 10), (0, 0, 30), (1, 0, 30)],  # those to keep, the best, the next one
)
def test_fault_16_too_little_space_is_noticed_at_the_start(tmp_path, monkeypatch, keep, there, needed):
    for epoch in range(there):
        (tmp_path / checkpoint_name(epoch)).touch()
    real = os.statvfs("/")

    def free(mib):
        blocks = os.statvfs_result((*real[:1], 2**20, 1000, 999, mib, *real[5:]))
        monkeypatch.setattr(os, "statvfs", lambda path: blocks)

    free(needed)
    check_space(tmp_path, 10 * 2**20, keep)
    free(needed - 1)
    with raises(ResourceError, tmp_path, f"{needed} MiB", f"{needed - 1} MiB", "TRAIN.KEEP_CHECKPOINTS"):
        check_space(tmp_path, 10 * 2**20, keep)


def test_fault_12_the_checksum_is_on_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    """Each file is flushed before its rename, and the folder after each rename."""
    seen, flush, rename = [], os.fsync, os.replace

    def kind(path):
        name = os.path.basename(path)
        return "folder" if os.path.isdir(path) else "checksum" if "sha256" in name else "checkpoint"

    def flushed(descriptor):
        seen.append(("flush", kind(os.readlink(f"/proc/self/fd/{descriptor}"))))
        flush(descriptor)

    def renamed(source, target):
        seen.append(("rename", kind(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path, 1)
    each = [[("flush", name), ("rename", name), ("flush", "folder")] for name in ("checksum", "checkpoint")]
    assert seen == each[0] + each[1]
