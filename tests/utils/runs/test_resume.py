"""Where a run starts: its own checkpoint, --resume, --pretrained, or fresh weights."""

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loading import load_config
from models.weights.load import load_contents
from tasks.classification.labels import ClassInfo
from tests.conftest import ROOT
from tests.tools.builders import plan, provenance, small, train_state
from tests.tools.errors import raises
from utils.checkpoints.files import save_checkpoint
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError
from utils.runs.folder import RunFolder
from utils.runs.resume import StartOptions, start_of

NEWEST = "the newest checkpoint in the output folder"


def contents(value, epoch=1):
    model = small()
    torch.nn.init.constant_(model.head.bias, value)
    state = train_state(model)
    state.start_at(epoch, plan())
    return {**provenance(info=ClassInfo()).as_dict(), **state.state_dict()}


def write(path, value):
    torch.save(contents(value), path)
    return str(path)


def load(model, contents, origin, info=None):
    return load_contents(model, contents, origin, None if info is None else ())


def begin(folder, **options):
    given = {name: str(value) if name in ("resume", "pretrained") else value for name, value in options.items()}
    start = start_of(StartOptions(**given), RunFolder(folder, World()), provenance(), World())
    model = small()
    start.load_weights(model, load)
    state = train_state(model)
    start.restore(state, plan(), load)
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
    with raises(ConfigError, tmp_path, "TRAIN.AUTO_RESUME true"):
        begin(tmp_path, auto_resume=False)


def test_weights_alone_start_afresh_and_say_so(tmp_path, caplog):
    torch.save({"model": small().state_dict()}, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        assert begin(tmp_path / "run", resume=tmp_path / "w.pth") == (0.0, 0)
    assert "(--resume); optimizer, schedule and counters start from scratch" in caplog.text


def test_a_training_state_that_does_not_fit_is_refused(tmp_path):
    saved = contents(0.0)
    del saved["counters"]["samples"]
    torch.save(saved, tmp_path / "r.pth")
    with raises(CheckpointError, tmp_path / "r.pth", "'samples'"):
        begin(tmp_path / "run", resume=tmp_path / "r.pth")


def test_a_finished_run_has_nothing_left(tmp_path, caplog):
    save_checkpoint(tmp_path / "checkpoints", "ckpt_epoch_1.pth", contents(3.0, epoch=2))
    with caplog.at_level("INFO"):
        begin(tmp_path)
    assert "nothing left to train: 2 of 2 epochs are done" in caplog.text


@dataclass(frozen=True)
class Ranks(World):
    """The main rank of two, which sends to `sent`, or the other one, which receives that in the same order."""

    size: int = 2
    sent: list[Any] = field(default_factory=list)
    beside: Any = None  # what the other rank gathers, the same as this one if None

    def gather_objects(self, value):
        ranks = [value, self.beside or value]
        return ranks if self.is_main else ranks[::-1]

    def broadcast(self, value):
        if not self.is_main:
            assert value is None  # it does not look for itself
            return self.sent.pop(0)
        self.sent.append(value)
        return value

    def broadcast_tensor(self, tensor):
        if self.is_main:
            self.sent.append(tensor.clone())
        else:
            tensor.copy_(self.sent.pop(0))


def found(folder, world=None, own=None, **options):
    return start_of(StartOptions(**options), RunFolder(folder, World()), own or provenance(), world or World())


def test_other_ranks_get_what_the_main_rank_read_and_need_no_disk(tmp_path):
    path = save_checkpoint(tmp_path / "run/checkpoints", "ckpt_epoch_0.pth", contents(3.0))
    resume = write(tmp_path / "r.pth", 1.0)
    main = Ranks()
    first = found(tmp_path / "run", main, resume=resume)
    path.unlink()
    other = found(tmp_path / "elsewhere", Ranks(1, sent=main.sent), resume="a file that this rank does not see")
    assert (first.origin, first.own, first.reason) == (other.origin, other.own, other.reason) == (path, True, NEWEST)
    assert torch.equal(other.contents["model"]["head.bias"], torch.full((5,), 3.0)) and not main.sent
    state = train_state(small())
    other.load_weights(state.model, load)
    other.restore(state, plan(), load)
    assert (state.model.head.bias[0].item(), state.epoch, state.update) == (3.0, 1, 10)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_newer_checkpoint_on_the_disk_of_another_rank_is_not_passed_over(tmp_path, rank):
    """The launcher gave rank 0 to another machine than before."""
    save_checkpoint(tmp_path / "checkpoints", "ckpt_epoch_1.pth", contents(3.0))
    newer, older = ((1, 3.0), "node7", "x/ckpt_epoch_1_step_3.pth"), ((-1, 0), "node8", "None")
    theirs = ((2, 5.0), "node7", "x/ckpt_epoch_2_step_5.pth") if rank == 0 else older
    newest = theirs[2] if rank == 0 else str(tmp_path / "checkpoints/ckpt_epoch_1.pth")
    with raises(CheckpointError, newest, theirs[1], platform.node()):
        found(tmp_path, Ranks(rank, beside=theirs))
    for same_or_older in (newer, older):  # a whole epoch comes after its updates
        assert found(tmp_path, Ranks(beside=same_or_older)).own


def test_every_rank_refuses_what_does_not_belong_to_the_run(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", "ckpt_epoch_0.pth", contents(3.0))
    main = Ranks()
    for world in (main, Ranks(1, sent=main.sent)):
        with raises(ConfigError, "TRAIN.GLOBAL_BATCH_SIZE", 8, "to 4"):
            found(tmp_path, world, own=provenance(global_batch=8))


def test_the_contents_of_a_checkpoint_are_not_kept_in_memory(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", "ckpt_epoch_0.pth", contents(3.0))
    start, state = found(tmp_path), train_state(small())
    start.load_weights(state.model, load)
    start.restore(state, plan(), load)
    assert start.contents == {}


def test_the_best_of_another_folder_is_forgotten(tmp_path):
    saved = contents(1.0)
    saved["best"] = {"value": 50.0, "epoch": 0}
    torch.save(saved, tmp_path / "r.pth")
    save_checkpoint(tmp_path / "own/checkpoints", "ckpt_epoch_0.pth", saved)
    for folder, best in (("own", 50.0), ("other", None)):
        start = found(tmp_path / folder, resume=str(tmp_path / "r.pth"))
        state = train_state(small())
        start.restore(state, plan(), load)
        assert (state.best_value, state.update) == (best, 10)


def test_only_pretrained_weights_may_get_another_head(tmp_path):
    weights, state = str(tmp_path / "w.pth"), write(tmp_path / "s.pth", 1.0)
    torch.save({"model": small().state_dict()}, weights)
    info = ClassInfo(class_names=("a", "b"))
    asked = []

    def load(model, contents, origin, info=None):
        asked.append((Path(origin).name, info))
        return ""

    for options in ({"pretrained": weights}, {"resume": weights}, {"pretrained": state}):
        found(tmp_path / "run", own=provenance(info=info), **options).load_weights(small(), load)
    found(tmp_path / "run", resume=state).load_weights(small(), load)
    assert asked == [("w.pth", info), ("w.pth", None), ("s.pth", info), ("s.pth", None)]


def test_fault_10_a_checkpoint_of_another_run_is_refused(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", "ckpt_epoch_0.pth", contents(3.0))
    with pytest.raises(CheckpointError, match="class 0 is none in the checkpoint and c in the data"):
        found(tmp_path, own=provenance(info=ClassInfo(class_names=("c",))))
    with raises(ConfigError, "TRAIN.GLOBAL_BATCH_SIZE", 8, "to 4"):
        found(tmp_path, own=provenance(global_batch=8))


def test_a_run_of_the_original_in_the_folder_is_resumed_and_not_overwritten(tmp_path):
    model = small()
    optimizer = torch.optim.AdamW([{"params": []}, {"params": list(model.parameters())}])
    theirs = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": {}, "epoch": 0}
    torch.save(theirs, tmp_path / "ckpt_epoch_0.pth")
    start = found(tmp_path)
    assert start.own and start.training_state and start.origin == tmp_path / "ckpt_epoch_0.pth"
    with raises(ConfigError, tmp_path, "TRAIN.AUTO_RESUME"):
        found(tmp_path, auto_resume=False)


def test_options_come_from_the_configuration():
    given = {"TRAIN.AUTO_RESUME": False, "MODEL.RESUME": "r", "MODEL.PRETRAINED": "p", "TRAIN.START_EPOCH": 3}
    overrides = [(name, value, "test") for name, value in {**given, "DATA.ACCEPT_CHANGES": True}.items()]
    cfg = load_config(ROOT / "configs/swin_tiny.yaml", overrides)
    assert StartOptions.from_config(cfg) == StartOptions(False, "r", "p", first_epoch=3, accept_changes=True)
