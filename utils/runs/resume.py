"""The starting point of a run: the newest checkpoint in its folder, --resume, --pretrained, or random weights."""

import logging
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from utils.checkpoints.broadcast import read_once
from utils.checkpoints.downloads import local_file
from utils.checkpoints.files import checkpoint_position, find_newest, list_checkpoints, read_checkpoint
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError
from utils.runs import original_checkpoints
from utils.runs.folder import RunFolder
from utils.runs.provenance import Provenance
from utils.training.plan import RunPlan
from utils.training.state import Load, TrainState

log = logging.getLogger(__name__)
_NEWEST, _RESUME, _PRETRAINED = "the newest checkpoint in the output folder", "--resume", "--pretrained"


@dataclass(frozen=True)
class StartOptions:
    """`auto_resume`: resume from the newest checkpoint in the folder; `resume`, `pretrained`: file names, or empty;
    `sha256`: expected digest of the file; `first_epoch` of a run without a checkpoint; `accept_changes`: accept
    different training samples."""

    auto_resume: bool = True
    resume: str = ""
    pretrained: str = ""
    sha256: str = ""
    first_epoch: int = 0
    accept_changes: bool = False

    @staticmethod
    def from_config(cfg: CfgNode) -> "StartOptions":
        return StartOptions(
            auto_resume=cfg.TRAIN.AUTO_RESUME,
            resume=cfg.MODEL.RESUME,
            pretrained=cfg.MODEL.PRETRAINED,
            sha256=cfg.MODEL.SHA256,
            first_epoch=cfg.TRAIN.START_EPOCH,
            accept_changes=cfg.DATA.ACCEPT_CHANGES,
        )


@dataclass
class Start:
    """The starting point of a run. `reason`: why it was chosen; `training_state`: whether the contents include one;
    `own`: whether they come from the folder of the run."""

    options: StartOptions
    provenance: Provenance
    reason: str
    contents: dict[str, Any] = field(default_factory=dict)
    origin: Path | None = None
    training_state: bool = False
    own: bool = False
    loaded: str = ""

    @property
    def stored_forms(self) -> dict[str, str] | None:
        """The forms of the operators in the run that is resumed; None in a new run, which chooses its own."""
        return self.contents.get("forms", {}) if self.training_state else None

    def load_weights(self, model: nn.Module, load: Load) -> None:
        """Loads the weights into a model that has not been wrapped. Raises: CheckpointError."""
        if self.origin is None:
            return
        contents, info = self.contents, self.provenance.info if self.reason == _PRETRAINED else None
        if self.training_state:
            contents = {"model": contents["model"], "pretrained_windows": contents.get("pretrained_windows")}
        self.loaded = load(model, contents, str(self.origin), info)

    def restore(self, state: TrainState, plan: RunPlan, load: Load) -> None:
        """Restores optimizer, counters and EMA, and logs the starting point in one line.

        Raises: CheckpointError if they do not match the run.
        """
        if self.origin is None or not self.training_state:
            state.start_at(self.options.first_epoch, plan)
            scratch = "; optimizer, schedule and counters start from scratch" if self.reason == _RESUME else ""
            log.info("weights: %s (%s)%s", self.loaded or "fresh", self.reason, scratch)
            return
        try:
            saved = self.contents
            if original_checkpoints.is_original(saved):
                saved = original_checkpoints.translate(saved, state, plan, self.origin)
            state.load_state_dict(saved, load, str(self.origin))
        except (KeyError, RuntimeError, TypeError, ValueError) as e:
            problem = f"the training state does not match this run ({e})"
            raise CheckpointError(str(self.origin), problem, "choose another file") from e
        self.contents = {}  # frees as much memory as the state takes
        log.info("weights: %s (%s), at epoch %d, update %d", self.loaded, self.reason, state.epoch, state.update)
        if state.update != state.done(plan):
            text = "an epoch has %d updates now, %d are done: the learning rate continues from epoch %d"
            log.info(text, plan.updates_per_epoch, state.update, state.epoch)
        if not self.own:
            state.reset_best()  # the best checkpoint is not in this run's folder
        if state.finished(plan):
            log.info("nothing left to train: %d of %d epochs are done", state.epoch + (state.step > 0), plan.epochs)


def find_start(cfg: CfgNode, folder: RunFolder, provenance: Provenance, world: World) -> Start:
    """Finds the configured starting point; see `start_of`."""
    return start_of(StartOptions.from_config(cfg), folder, provenance, world)


def start_of(options: StartOptions, folder: RunFolder, provenance: Provenance, world: World) -> Start:
    """Finds the newest intact checkpoint of this run, else the file `resume`, else `pretrained`, else nothing.

    The main rank reads and broadcasts it; the other ranks need no access to its disk.
    Raises: CheckpointError, ConfigError if the checkpoint belongs to another run.
    """
    if options.auto_resume:
        _check_other_disks(folder, world)
    reason, origin, contents = read_once(world, lambda: _find(options, folder))
    own = reason == _NEWEST
    training_state = original_checkpoints.is_original(contents) or {"model", "optimizer", "counters"} <= contents.keys()
    if origin is None or reason == _PRETRAINED or not training_state:
        return Start(options, provenance, reason, contents, origin)
    provenance.check(contents, origin, options.accept_changes)
    return Start(options, provenance, reason, contents, origin, training_state=True, own=own)


def _check_other_disks(folder: RunFolder, world: World) -> None:
    """Raises: CheckpointError if another machine has a newer checkpoint: a launcher may have renumbered the ranks."""
    own = next(iter(list_checkpoints(folder.checkpoints)), None)
    found = world.gather_objects((checkpoint_position(own), platform.node(), str(own)))
    newest = max(found, key=lambda each: each[0])
    if newest[0] > found[0][0]:
        problem = f"this checkpoint on {newest[1]} is newer than any on {found[0][1]}, the machine of rank 0"
        raise CheckpointError(newest[2], problem, "copy its output folder there, or remove it")


def _find(options: StartOptions, folder: RunFolder) -> tuple[str, Path | None, dict[str, Any]]:
    """Returns the reason, the file and its contents."""
    newest = _newest(options, folder)
    if newest is not None:
        return _NEWEST, *newest
    for reason, name in ((_RESUME, options.resume), (_PRETRAINED, options.pretrained)):
        if name:
            origin = local_file(name, options.sha256, newest=reason == _RESUME)
            return reason, origin, read_checkpoint(origin)
    return "no checkpoint in the output folder, no --resume, no --pretrained", None, {}


def _newest(options: StartOptions, folder: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    if folder.is_foreign:
        return None
    if options.auto_resume:
        found = find_newest(folder.checkpoints)
        path = None if found else original_checkpoints.newest_original(folder.path)
        return found if path is None else (path, read_checkpoint(path))
    if list_checkpoints(folder.checkpoints) or original_checkpoints.newest_original(folder.path):
        remedy = "set a different --tag, or resume from them with TRAIN.AUTO_RESUME true"
        raise ConfigError(str(folder.path), "the checkpoints in this folder would be overwritten", remedy)
    return None
