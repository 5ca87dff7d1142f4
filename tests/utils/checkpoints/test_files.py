"""Checkpoint files: whole, verified, found by number."""

import hashlib
import os
import pickle
import time

import pytest
import torch

from utils.checkpoints.files import (
    checkpoint_name,
    find_newest,
    link_to,
    list_checkpoints,
    read_checkpoint,
    remove_leftovers,
    remove_old,
    save_checkpoint,
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


def test_links_point_at_a_file_beside_them(tmp_path):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    for target in (first, second):
        link_to(tmp_path / "last.pth", target)
        assert (tmp_path / "last.pth").readlink().name == target.name
    assert torch.equal(read_checkpoint(tmp_path / "last.pth")["model"]["a"], torch.full((999,), 2.0))


def test_the_newest_and_the_best_are_kept(tmp_path):
    for epoch in range(6):
        path = save(tmp_path, epoch)
        if epoch == 1:
            link_to(tmp_path / "best.pth", path)
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
    with pytest.raises(CheckpointError, match="corrupt"):
        read_checkpoint(bad)
    bad.with_name(bad.name + ".sha256").unlink()
    with pytest.raises(CheckpointError, match=r"ckpt_epoch_2\.pth"):
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
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is intact"):
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
    with pytest.raises(CheckpointError, match=r"wants to import (posix|os)\.mkdir"):
        read_checkpoint(path)
    assert not canary.exists()


def test_other_unusable_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_checkpoint(tmp_path / "gone.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="but a list"):
        read_checkpoint(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="text.pth"):
        read_checkpoint(tmp_path / "text.pth")
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_checkpoint(tmp_path)


def test_a_failed_save_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    path = save(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert find_newest(tmp_path)[0] == path and len(list(tmp_path.iterdir())) == 2
