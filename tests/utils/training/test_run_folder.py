"""The output folder belongs to one configuration."""

import json

import pytest

from tests.builders import small, train_state
from utils.checkpoints.files import save_checkpoint
from utils.distributed import World
from utils.errors import ConfigError, ResourceError
from utils.training.run_folder import RunFolder


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
