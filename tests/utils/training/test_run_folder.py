"""The output folder belongs to one configuration."""

import json
import logging

import pytest

from configs.loading import load_config
from tests.builders import small, train_state
from tests.conftest import ROOT
from utils.checkpoints.files import save_checkpoint
from utils.distributed import World
from utils.errors import ConfigError, ResourceError
from utils.training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def handlers():
    """The log files of claimed folders are closed afterwards."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers = before


def same(text):
    return []


def test_claiming_writes_configuration_and_environment(tmp_path):
    folder = RunFolder(tmp_path / "run", World())
    folder.claim("TAG: x\n", same)
    assert folder.config.read_text() == "TAG: x\n" and folder.checkpoints.is_dir()
    environment = json.loads((folder.path / "env.json").read_text())
    assert environment["processes"] == 1 and environment["versions"]["torch"]


def test_fault_08_another_configuration_is_refused_once_something_was_trained(tmp_path):
    folder = RunFolder(tmp_path, World())
    folder.claim("TAG: x\n", same)
    folder.claim("TAG: y\n", lambda text: ["TAG was x, now y"])  # nothing was trained: it may change
    assert folder.config.read_text() == "TAG: y\n"
    save_checkpoint(folder.checkpoints, "ckpt_epoch_0.pth", {"model": {}})
    with pytest.raises(ConfigError, match="another configuration: .*: TAG was y, now z: .*--tag"):
        folder.claim("TAG: z\n", lambda text: ["TAG was y, now z"])
    assert folder.config.read_text() == "TAG: y\n"


def test_only_the_main_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "barrier", lambda self: None)  # there is no other rank to wait for
    RunFolder(tmp_path / "run", World(rank=1, size=2)).claim("TAG: x\n", same)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot write the output folder .*file/run: set OUTPUT"):
        RunFolder(tmp_path / "file/run", World()).claim("TAG: x\n", same)


def test_links_are_repaired_after_an_interrupted_save(tmp_path):
    folder, state = RunFolder(tmp_path, World()), train_state(small())
    for name in ("ckpt_epoch_1.pth", "ckpt_epoch_2.pth"):
        save_checkpoint(folder.checkpoints, name, {"model": {}})
    state.epoch, state.best_epoch = 3, 1
    folder.repair_links(state)
    assert (folder.checkpoints / "best.pth").readlink().name == "ckpt_epoch_1.pth"
    assert (folder.checkpoints / "last.pth").readlink().name == "ckpt_epoch_2.pth"


def test_fault_08_metrics_alone_count_as_trained(tmp_path):
    folder = RunFolder(tmp_path, World())
    folder.claim("TAG: x\n", same)
    folder.metrics.write_text("{}\n")
    with pytest.raises(ConfigError, match="another configuration"):
        folder.claim("TAG: y\n", lambda text: ["TAG was x, now y"])
    folder.claim("TAG: x\nPRINT_FREQ: 1\n", same)
    assert folder.config.read_text() == "TAG: x\n"  # the one it was trained with is kept


def test_leftovers_of_a_killed_run_are_removed_and_the_log_is_started(tmp_path):
    folder = RunFolder(tmp_path, World())
    folder.checkpoints.mkdir()
    (folder.checkpoints / ".ckpt_epoch_0.0a1b2c3d.tmp.pth").touch()
    folder.claim("TAG: x\n", same)
    assert list(folder.checkpoints.iterdir()) == []
    logging.getLogger().warning("hello")
    assert "hello" in (folder.path / "log.txt").read_text()


def test_within_an_epoch_the_last_checkpoint_is_that_of_the_step(tmp_path):
    folder, state = RunFolder(tmp_path, World()), train_state(small())
    folder.checkpoints.mkdir()
    folder.repair_links(state)
    assert list(folder.checkpoints.iterdir()) == []  # nothing was saved yet
    for name in ("ckpt_epoch_1.pth", "ckpt_epoch_2_step_4.pth"):
        save_checkpoint(folder.checkpoints, name, {"model": {}})
    (folder.checkpoints / "last.pth").symlink_to("ckpt_epoch_1.pth")
    state.epoch, state.step = 2, 4
    folder.repair_links(state)
    assert (folder.checkpoints / "last.pth").readlink().name == "ckpt_epoch_2_step_4.pth"
    assert not (folder.checkpoints / "best.pth").is_symlink()


def test_the_path_follows_from_output_name_and_tag():
    cfg = load_config(ROOT / "configs/swin_tiny.yaml", [("OUTPUT", "out", "x"), ("TAG", "t/1", "x")])
    assert str(RunFolder.from_config(cfg, World()).path) == f"out/{cfg.MODEL.NAME}/t/1"
