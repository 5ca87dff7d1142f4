"""The output folder belongs to one configuration."""

import errno
import json
import logging
import os
import shlex
import threading

import pytest

from configs.loading import load_config
from tests.conftest import ROOT
from tests.tools.builders import provenance, small, train_state
from tests.tools.errors import raises
from utils.checkpoints.files import save_checkpoint
from utils.distributed.world import World
from utils.errors import ConfigError, ResourceError
from utils.runs.folder import RunFolder
from utils.runs.lock import RunLock
from utils.runs.provenance import Provenance
from utils.runs.resume import StartOptions, start_of


@pytest.fixture(autouse=True)
def owners():
    """Folders are given back after a test."""
    yield
    for thread in threading.enumerate():
        if isinstance(thread, RunLock):
            thread.release()


def same(text):
    return []


def claim(folder, config, differences=same):
    """Claims a folder as a run that is over when the function returns."""
    folder.acquire(config, differences)
    folder.release()


def test_claiming_writes_configuration_and_environment(tmp_path):
    folder = RunFolder(tmp_path / "run", World())
    folder.acquire("TAG: x\n", same)
    assert folder.config.read_text() == "TAG: x\n" and folder.checkpoints.is_dir()
    environment = json.loads((folder.path / "env.json").read_text())
    assert environment["processes"] == 1 and environment["versions"]["torch"]


def test_fault_08_another_configuration_is_refused_once_something_was_trained(tmp_path):
    folder = RunFolder(tmp_path, World())
    claim(folder, "TAG: x\n")
    claim(folder, "TAG: y\n", lambda text: ["TAG was x, now y"])  # nothing was trained: it may change
    assert folder.config.read_text() == "TAG: y\n"
    save_checkpoint(folder.checkpoints, "ckpt_epoch_0.pth", {"model": {}})
    with raises(ConfigError, tmp_path, "TAG was y, now z", "--tag"):
        folder.acquire("TAG: z\n", lambda text: ["TAG was y, now z"])
    assert folder.config.read_text() == "TAG: y\n"


def test_the_command_that_continues_elsewhere_is_quoted(tmp_path):
    folder = RunFolder(tmp_path / "x $(date)", World())
    claim(folder, "TAG: x\n")
    save_checkpoint(folder.checkpoints, "ckpt_epoch_0.pth", {"model": {}})
    with pytest.raises(ConfigError) as caught:
        folder.acquire("TAG: x\n", lambda text: ["TRAIN.EPOCHS was 1, now 2"])
    words = shlex.split(caught.value.remedy)
    assert words[words.index("--resume") + 1] == f"{folder.path}/checkpoints/last.pth"


def test_a_dry_run_of_another_configuration_leaves_the_folder_alone(tmp_path, caplog):
    folder = RunFolder(tmp_path, World())
    claim(folder, "TAG: x\n")
    save_checkpoint(folder.checkpoints, "ckpt_epoch_0.pth", {"model": {}})
    dry = RunFolder(tmp_path, World(), read_only=True)
    dry.acquire("TAG: z\n", lambda text: ["TAG was x, now z"])
    assert dry.is_foreign and "TAG was x, now z" in caplog.text
    start = start_of(StartOptions(), dry, provenance(), World())
    assert start.origin is None and not start.contents


def test_only_the_main_rank_writes(tmp_path):
    folder = RunFolder(tmp_path / "run", World(rank=1, size=2))
    folder.acquire("TAG: x\n", same)
    folder.release()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with raises(ResourceError, tmp_path / "file/run", "OUTPUT"):
        RunFolder(tmp_path / "file/run", World()).acquire("TAG: x\n", same)


def test_links_are_repaired_after_an_interrupted_save(tmp_path):
    folder, state = RunFolder(tmp_path, World()), train_state(small())
    for name in ("ckpt_epoch_1.pth", "ckpt_epoch_2.pth"):
        save_checkpoint(folder.checkpoints, name, {"model": {}})
    state.epoch, state.best_epoch = 3, 1
    folder.begin(Provenance("TAG: x\n", 1), state)
    assert (folder.checkpoints / "best.pth").readlink().name == "ckpt_epoch_1.pth"
    assert (folder.checkpoints / "last.pth").readlink().name == "ckpt_epoch_2.pth"


def test_fault_08_metrics_alone_count_as_trained(tmp_path):
    folder = RunFolder(tmp_path, World())
    claim(folder, "TAG: x\n")
    folder.metrics.write_text("{}\n")
    with raises(ConfigError, tmp_path, "TAG was x, now y"):
        folder.acquire("TAG: y\n", lambda text: ["TAG was x, now y"])
    assert not (tmp_path / "owner.json").exists()
    claim(folder, "TAG: x\nPRINT_FREQ: 1\n")
    assert folder.config.read_text() == "TAG: x\n"  # the one it was trained with is kept


def test_leftovers_of_a_killed_run_are_removed_and_the_log_is_started(tmp_path):
    folder = RunFolder(tmp_path, World())
    folder.checkpoints.mkdir()
    (folder.checkpoints / ".ckpt_epoch_0.0a1b2c3d.tmp.pth").touch()
    folder.acquire("TAG: x\n", same)
    assert list(folder.checkpoints.iterdir()) == []
    logging.getLogger().warning("hello")
    assert "hello" in (folder.path / "log.txt").read_text()


def test_within_an_epoch_the_last_checkpoint_is_that_of_the_step(tmp_path):
    folder, state = RunFolder(tmp_path, World()), train_state(small())
    folder.checkpoints.mkdir()
    folder.begin(Provenance("TAG: x\n", 1), state)
    assert list(folder.checkpoints.iterdir()) == []  # nothing was saved yet
    for name in ("ckpt_epoch_1.pth", "ckpt_epoch_2_step_4.pth"):
        save_checkpoint(folder.checkpoints, name, {"model": {}})
    (folder.checkpoints / "last.pth").symlink_to("ckpt_epoch_1.pth")
    state.epoch, state.step = 2, 4
    folder.begin(Provenance("TAG: x\n", 1), state)
    assert (folder.checkpoints / "last.pth").readlink().name == "ckpt_epoch_2_step_4.pth"
    assert not (folder.checkpoints / "best.pth").is_symlink()


def test_fault_09_a_folder_in_use_is_refused_and_nothing_in_it_touched(tmp_path):
    first, second = RunFolder(tmp_path, World()), RunFolder(tmp_path, World())
    first.acquire("TAG: x\n", same)
    half_written = first.checkpoints / ".ckpt_epoch_0.0a1b2c3d.tmp.pth"
    half_written.touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "owner.json"}
    with raises(ConfigError, tmp_path, f"process {os.getpid()}", tmp_path / "owner.json"):
        second.acquire("TAG: y\n", same)
    second.release()  # takes nothing from the first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "owner.json"}
    assert (tmp_path / "owner.json").exists()
    first.release()
    claim(second, "TAG: y\n")
    assert not half_written.exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_fault_17_a_read_only_output_folder_is_named(tmp_path, monkeypatch, call, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with raises(ResourceError, tmp_path / "run", os.strerror(number), "OUTPUT"):
        RunFolder(tmp_path / "run", World()).acquire("TAG: x\n", same)


def test_without_links_the_log_says_where_the_names_are(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    folder, state = RunFolder(tmp_path, World()), train_state(small())
    with caplog.at_level(logging.INFO):
        claim(folder, "TAG: x\n")
    assert "last.txt and best.txt" in caplog.text
    save_checkpoint(folder.checkpoints, "ckpt_epoch_1.pth", {"model": {}})
    state.epoch, state.best_epoch = 2, 1
    folder.begin(Provenance("TAG: x\n", 1), state)
    for name in ("best.txt", "last.txt"):
        assert (folder.checkpoints / name).read_text() == "ckpt_epoch_1.pth\n"


def test_the_folder_follows_from_output_name_and_tag_and_is_released(tmp_path, monkeypatch):
    cfg = load_config(ROOT / "configs/swin_tiny.yaml", [("OUTPUT", "out", "x"), ("TAG", "t/1", "x")])
    monkeypatch.chdir(tmp_path)
    with RunFolder.open(cfg, World()) as folder:
        assert str(folder.path) == f"out/{cfg.MODEL.NAME}/t/1" and (folder.path / "owner.json").exists()
    assert not (folder.path / "owner.json").exists()


def test_a_corrupt_configuration_of_the_folder_is_said(tmp_path):
    folder = RunFolder(tmp_path, World())
    save_checkpoint(folder.checkpoints, "ckpt_epoch_0.pth", {"model": {}})
    folder.config.write_bytes(b"TAG: \xff\n")
    with raises(ResourceError, folder.config, "UTF-8"):
        folder.acquire("TAG: x\n", same)
