"""TensorBoard, and Weights & Biases without a network."""

import shutil
import sys
import threading
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tests.tools.builders import in_child
from tests.tools.errors import raises
from utils.errors import ConfigError
from utils.logs.trackers import Trackers, WeightsAndBiases


def test_the_settings_of_a_run_stand_beside_its_best_metric(tmp_path):
    trackers = Trackers(tmp_path, 0)
    trackers.write({"train/loss": 0.5}, 3)
    settings = {"TRAIN.BASE_LR": 0.1, "MODEL.SWIN.DEPTHS": [2, 2], "TRAIN.EPOCHS": 300}
    trackers.finish(settings, {"TRAIN.BASE_LR", "MODEL.SWIN.DEPTHS"}, {"top1": 81.0})
    trackers.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("train/loss")[0].step == 3 and board.Scalars("val/top1_best")[0].value == 81.0
    summaries = board.SummaryMetadata("_hparams_/session_start_info")
    data = plugin_data_pb2.HParamsPluginData.FromString(summaries.plugin_data.content)
    assert data.session_start_info.hparams["TRAIN.BASE_LR"].number_value == 0.1
    assert data.session_start_info.hparams["MODEL.SWIN.DEPTHS"].string_value == "[2, 2]"
    assert "TRAIN.EPOCHS" not in data.session_start_info.hparams  # its default


def test_fault_55_a_folder_that_is_removed_disables_tensorboard_with_one_warning(tmp_path):
    def start():
        threading.excepthook = threading.__excepthook__  # pytest's collects what fails
        trackers = Trackers(tmp_path, 0)
        shutil.rmtree(tmp_path / "tensorboard")
        (board,) = [thread for thread in threading.enumerate() if type(thread).__module__.startswith("tensorboard")]
        trackers.write({"train/loss": 0.5}, 1)
        board.join(10)  # it has failed
        for update in (2, 3):
            trackers.write({"train/loss": 0.5}, update)
        trackers.close()

    code, err = in_child(start)
    assert code == 0 and err.count("\n") == 1 and err.startswith("TensorBoard failed and is disabled"), err


@pytest.mark.seconds
def test_weights_and_biases_needs_no_network(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "model" / "tag").mkdir(parents=True)
    trackers = Trackers(tmp_path / "model" / "tag", 0, wandb="project")
    trackers.write({"train/loss": 0.5}, 3)
    trackers.finish({"TAG": "tag"}, (), {"top1": 81.0})
    trackers.close()
    assert "training continues" not in caplog.text
    (run,) = (tmp_path / "model" / "tag" / "wandb").glob("offline-run-*")
    file, last = next(run.glob("*.wandb")), time.monotonic() + 60
    while b"best/top1" not in file.read_bytes():  # its own process writes it
        assert time.monotonic() < last
        time.sleep(0.1)
    assert b"train/loss" in file.read_bytes()


def test_without_its_package_a_tracker_that_was_asked_for_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with raises(ConfigError, "LOG.WANDB", "pip install wandb"):
        Trackers(tmp_path, 0, wandb="project")


def test_a_tracker_that_cannot_start_does_not_stop_the_others(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsAndBiases, "__init__", fail)
    trackers = Trackers(tmp_path, 0, wandb="project")
    assert caplog.messages == ["Weights & Biases cannot be started (no route to host); training continues"]
    trackers.write({"train/loss": 0.5}, 3)
    trackers.close()
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
