"""Where a run starts: its own checkpoint, --resume, --pretrained, or fresh weights."""

from pathlib import Path

import pytest
import torch

from models.weights.load import load_contents
from tests.builders import plan, provenance, small, train_state
from utils.checkpoints.files import save_checkpoint
from utils.distributed import World
from utils.errors import CheckpointError, ConfigError
from utils.training.resume import StartOptions, find_start
from utils.training.run_folder import RunFolder


def contents(value, epoch=1):
    model = small()
    torch.nn.init.constant_(model.head.bias, value)
    state = train_state(model)
    state.start_at(epoch, plan())
    return {**provenance().as_dict(), **state.state_dict()}


def write(path, value):
    torch.save(contents(value), path)
    return str(path)


def begin(folder, **options):
    start = find_start(
        StartOptions(**options),
        RunFolder(folder, World()),
        provenance(),
        World(),
        load=load_contents,
        fetch=Path,
    )
    model = small()
    start.load_weights(model)
    state = train_state(model)
    start.restore(state, plan())
    return model.head.bias[0].item(), state.epoch


def test_the_order_of_precedence(tmp_path):
    resume, pretrained = write(tmp_path / "r.pth", 1.0), write(tmp_path / "p.pth", 2.0)
    run = tmp_path / "run"
    assert begin(run) == (0.0, 0)
    assert begin(run, pretrained=pretrained, first_epoch=1) == (2.0, 1)
    assert begin(run, pretrained=pretrained, resume=resume) == (1.0, 1)
    save_checkpoint(run / "checkpoints", "ckpt_epoch_0.pth", contents(3.0))
    assert begin(run, pretrained=pretrained, resume=resume) == (3.0, 1)


def test_checkpoints_are_never_overwritten(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", "ckpt_epoch_0.pth", contents(3.0))
    with pytest.raises(ConfigError, match="would be overwritten.*TRAIN.AUTO_RESUME true"):
        begin(tmp_path, auto_resume=False)


def test_weights_alone_start_afresh_and_say_so(tmp_path, caplog):
    torch.save({"model": small().state_dict()}, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        assert begin(tmp_path / "run", resume=tmp_path / "w.pth") == (0.0, 0)
    assert "(--resume); optimizer, schedule and counters start afresh" in caplog.text


def test_a_training_state_that_does_not_fit_is_refused(tmp_path):
    saved = contents(0.0)
    del saved["counters"]["samples"]
    torch.save(saved, tmp_path / "r.pth")
    with pytest.raises(CheckpointError, match="the training state does not fit this run"):
        begin(tmp_path / "run", resume=tmp_path / "r.pth")


def test_a_finished_run_has_nothing_left(tmp_path, caplog):
    save_checkpoint(tmp_path / "checkpoints", "ckpt_epoch_1.pth", contents(3.0, epoch=2))
    with caplog.at_level("INFO"):
        begin(tmp_path)
    assert "nothing left to train: 2 of 2 epochs are done" in caplog.text
