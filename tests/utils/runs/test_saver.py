"""Checkpoints written in the background, and a kill or a full disk at every system call of a save."""

import errno
import logging
import os
import resource
import signal
import threading

import pytest
import torch
from torch import nn

from tests.tools.builders import in_child
from tests.tools.errors import raises
from tests.tools.inject import Fault, Injector
from utils.checkpoints.files import find_newest, follow, list_checkpoints, read_checkpoint, remove_leftovers
from utils.errors import ResourceError
from utils.runs import saver as module
from utils.runs.saver import Saver, snapshot


def counters(epoch):
    return {"epoch": epoch, **dict.fromkeys(("step", "update", "skipped", "skipped_in_row", "samples"), 0)}


def contents(value):
    return {"model": {"a": torch.full((50_000,), float(value))}, "counters": counters(value)}


def save_twice(folder):
    """The first one is the best; only the newest is kept besides."""
    saver = Saver(folder, keep=1)
    for epoch in (1, 2):
        saver.save(f"ckpt_epoch_{epoch}.pth", contents(epoch), best=epoch == 1)
        saver.finish()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def both(*epochs):
    return [f"ckpt_epoch_{epoch}.pth{end}" for epoch in epochs for end in ("", ".sha256")]


def test_links_and_what_is_kept(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        save_twice(tmp_path)
    assert names(tmp_path) == ["best.pth", *both(1, 2), "last.pth"]
    links = {name: (tmp_path / name).readlink().name for name in ("best.pth", "last.pth")}
    assert links == {"best.pth": "ckpt_epoch_1.pth", "last.pth": "ckpt_epoch_2.pth"}
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "saved ckpt_epoch_1.pth (best so far)",
        "saved ckpt_epoch_2.pth",
    ]


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until it is set."""
    opened, write = threading.Event(), module.save_checkpoint

    def wait(*args):
        assert opened.wait(20)
        return write(*args)

    monkeypatch.setattr(module, "save_checkpoint", wait)
    yield opened
    opened.set()


def test_training_goes_on_while_a_copy_of_its_state_is_written(tmp_path, gate):
    model, saver = nn.Linear(2, 2), Saver(tmp_path, 0)
    nn.init.ones_(model.weight)
    state = {"model": model.state_dict(), "counters": counters(1), "betas": [0.9]}
    saver.save("ckpt_epoch_1.pth", state)
    assert not list_checkpoints(tmp_path)
    nn.init.zeros_(model.weight)
    state["counters"]["epoch"] = 2
    state["betas"].append(0.99)
    saver.check()
    gate.set()
    saver.finish()
    saved = read_checkpoint(tmp_path / "ckpt_epoch_1.pth")
    assert saved["model"]["weight"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert (saved["counters"], saved["betas"]) == (counters(1), [0.9])


def test_one_checkpoint_is_written_at_a_time(tmp_path, gate):
    saver, begun = Saver(tmp_path, 0), []
    saver.save("ckpt_epoch_1.pth", contents(1))

    def second():
        saver.save("ckpt_epoch_2.pth", contents(2))
        begun.append([path.name for path in list_checkpoints(tmp_path)][-1:])

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not begun
    gate.set()
    thread.join(20)
    saver.finish()
    assert begun == [["ckpt_epoch_1.pth"]]  # the first was there when the second began


def test_the_process_does_not_end_before_the_checkpoint_is_written(tmp_path):
    def start():
        Saver(tmp_path, 0).save("ckpt_epoch_1.pth", contents(1))
        threading._shutdown()  # as at the end of a program

    assert in_child(start) == (0, "")
    assert find_newest(tmp_path)[1]["counters"]["epoch"] == 1


def test_a_failed_save_is_reported_once_by_whatever_comes_next(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saver = Saver(tmp_path, 0)
    for ask in (saver.finish, lambda: saver.save("ckpt_epoch_2.pth", contents(2)), saver.check):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            saver.save("ckpt_epoch_1.pth", contents(1))
            saver.finish_quietly()
        with raises(ResourceError, tmp_path / "ckpt_epoch_1.pth", os.strerror(errno.ENOSPC)):
            ask()
        saver.check()
        saver.finish()
    assert not list_checkpoints(tmp_path)


def test_fault_17_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, caplog):
    """The new one is safe, and the run goes on."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    save_twice(tmp_path)
    saver = Saver(tmp_path, keep=1)
    monkeypatch.setattr(os, "unlink", refuse)
    saver.save("ckpt_epoch_3.pth", contents(3))
    saver.finish()
    assert "cannot remove an old checkpoint (Read-only file system)" in caplog.text
    assert find_newest(tmp_path)[0].name == "ckpt_epoch_3.pth"


def test_quietly_means_for_a_while_and_without_an_error(tmp_path):
    saver = Saver(tmp_path, 0)
    saver.finish_quietly()
    saver.save("ckpt_epoch_1.pth", contents(1))
    saver.finish_quietly()
    assert find_newest(tmp_path)
    (tmp_path / "file").touch()
    broken = Saver(tmp_path / "file", 0)
    broken.save("ckpt_epoch_1.pth", contents(1))
    broken.finish_quietly()


def test_a_snapshot_shares_nothing():
    whole = torch.arange(6.0)
    given = {
        "view": whole[::2],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "parameter": nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        0: [(whole[0], "text"), None],
    }
    copy = snapshot(given)
    whole.zero_()
    assert copy["view"].tolist() == [0.0, 2.0, 4.0] and copy["view"].untyped_storage().nbytes() == 12
    assert (copy["half"].dtype, copy["scalar"].item(), copy["empty"].shape) == (torch.bfloat16, 3, (0, 4))
    assert type(copy["parameter"]) is torch.Tensor and not copy["parameter"].requires_grad
    assert isinstance(copy[0][0], tuple) and copy[0][0][1] == "text" and copy[0][1] is None


def disturbed(folder, count, action, calls=("fsync", "replace", "symlink", "unlink")):
    """Saves twice in a child process with a fault at the `count`-th system call; returns its exit code."""

    def start():
        injector = Injector([Fault("save", count, action)])
        for name in calls:
            injector.around(os, name, "save", saver_only=True)
        injector.watch_writes()
        try:
            save_twice(folder)
        except ResourceError as e:
            assert "No space left on device" in str(e), e
            os._exit(e.exit_code)

    code, err = in_child(start)
    assert code != 99, err
    return code


def assert_recovers(folder, caplog):
    """What is there is whole, leftovers go, and saving goes on. Returns the epoch of the newest, 0 for none."""
    if not folder.exists():
        return 0
    caplog.clear()
    found = find_newest(folder)
    assert not caplog.records, "a checkpoint under its final name is not intact"
    epoch = 0
    if found is not None:
        epoch = int(found[0].stem[-1])
        assert found[1]["model"]["a"].unique().tolist() == [epoch] and found[1]["counters"]["epoch"] == epoch
        assert not (folder / "last.pth").is_symlink() or follow(folder / "last.pth").resolve().exists()
    remove_leftovers(folder)
    kept = [int(path.stem[-1]) for path in list_checkpoints(folder)]
    pointers = {name for name in names(folder) if name.split(".")[0] in ("best", "last")}
    assert names(folder) == sorted([*pointers, *both(*kept)])
    saver = Saver(folder, keep=1)
    saver.save("ckpt_epoch_3.pth", contents(3))
    saver.finish()
    best = pointers & {"best.pth", "best.txt"}
    assert names(folder) == sorted([*best, *both(*([1] if best else []), 3), "last.pth"])
    assert find_newest(folder)[1]["counters"]["epoch"] == 3
    return epoch


@pytest.mark.seconds
def test_fault_11_a_kill_at_every_system_call_of_a_save(tmp_path, caplog):
    newest, count, code = [], 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        count += 1
        folder = tmp_path / str(count)
        code = disturbed(folder, count, "kill")
        newest.append(assert_recovers(folder, caplog))
    assert code == 0 and count > 24, count
    assert newest == sorted(newest) and set(newest) == {0, 1, 2}


@pytest.mark.seconds
def test_fault_15_a_disk_that_is_full_at_any_system_call_of_a_save(tmp_path, caplog):
    """Links are not worth an error."""
    newest, codes = [], []
    for count in range(1, 40):
        folder = tmp_path / str(count)
        codes.append(disturbed(folder, count, "full", calls=("fsync", "replace", "symlink")))
        if codes[-1] == 7:  # no temporary file, no checksum alone
            kept = [path.name for path in list_checkpoints(folder)]
            files = [name for name in names(folder) if name.split(".")[0] not in ("best", "last")]
            assert files == sorted(name + end for name in kept for end in ("", ".sha256"))
        newest.append(assert_recovers(folder, caplog))
    assert set(codes) == {0, 7} and codes.count(7) > 15 and codes[-1] == 0
    assert set(newest) == {0, 1, 2}
    assert all(epoch == 2 for epoch, code in zip(newest, codes, strict=True) if code == 0)


def test_fault_15_a_limit_of_the_size_of_files_is_a_full_disk(tmp_path, caplog):
    """A real one: the second checkpoint is larger than the limit."""

    def start():
        saver = Saver(tmp_path, keep=0)
        saver.save("ckpt_epoch_1.pth", contents(1))
        saver.finish()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        saver.save("ckpt_epoch_2.pth", contents(2))
        try:
            saver.finish()
        except ResourceError as e:
            assert e.subject == str(tmp_path / "ckpt_epoch_2.pth") and os.strerror(errno.EFBIG) in e.problem
            os._exit(e.exit_code)

    assert in_child(start)[0] == 7
    assert names(tmp_path) == [*both(1), "last.pth"]
    assert find_newest(tmp_path)[1]["counters"]["epoch"] == 1


def test_fault_63_a_save_makes_no_folder_that_was_removed(tmp_path):
    saver = Saver(tmp_path / "run/checkpoints", 0)
    saver.save("ckpt_epoch_1.pth", contents(1))
    with raises(ResourceError, tmp_path / "run"):
        saver.finish()
    assert not (tmp_path / "run").exists()
