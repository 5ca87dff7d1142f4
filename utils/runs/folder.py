"""The output folder of a run, output/<MODEL.NAME>/<TAG>/, which belongs to one configuration."""

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from configs.loading import config_differences, dump_config
from utils.checkpoints.files import (
    checkpoint_name,
    list_checkpoints,
    point_to,
    remove_leftovers,
    supports_links,
)
from utils.distributed.world import World
from utils.errors import ConfigError, ResourceError, count
from utils.files import quoted, write_errors, write_text
from utils.runs.lock import RunLock
from utils.runs.provenance import Provenance, versions
from utils.runtime import device_name
from utils.terminal import log_lines, log_to_file
from utils.training.state import TrainState

log = logging.getLogger(__name__)


class RunFolder:
    """The paths of a run. Only the main rank writes; none does if the folder is `read_only`."""

    def __init__(self, path: Path, world: World, read_only: bool = False):
        self.path = self._given = path
        self.world, self._read_only = world, read_only
        self._owner: RunLock | None = None
        self.is_foreign = False  # it belongs to another configuration: a dry run of this one finds no checkpoint in it

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @staticmethod
    @contextmanager
    def open(cfg: CfgNode, world: World) -> "Iterator[RunFolder]":
        """Holds the folder of a run during the block. Raises: as for `acquire`."""
        folder = RunFolder(path_of_run(cfg), world, cfg.DRY_RUN)
        folder.acquire(dump_config(cfg), partial(config_differences, cfg))
        try:
            yield folder
        finally:
            folder.release()

    def acquire(self, config: str, differences: Callable[[str], list[str]]) -> None:
        """Acquires the folder for this run, on the main rank.

        Args: config: the resolved configuration as YAML; differences: compares it with a stored one, one line per
        differing key.
        Raises: ConfigError if a different configuration was trained here, or another run writes here; ResourceError if
        the folder is not writable.
        """
        if not self.world.is_main:
            return
        with write_errors(self.path, "OUTPUT"):
            self._owner = self._take(config, differences)

    def release(self) -> None:
        """Releases the folder for other runs."""
        if self._owner is not None:
            self._owner.release()

    def follow_move(self) -> bool:
        """Returns whether the folder has been moved since it was acquired; `path` is then its new location.

        Raises: ResourceError if it was removed.
        """
        place = self.path if self._owner is None else self._owner.place()
        if place is None:
            problem = "was removed while the run was writing to it, with its checkpoints"
            raise ResourceError(str(self._given), problem, "restore it, or run the same command again to start over")
        self.path = place
        return place != self._given

    def moved_error(self, state: str) -> ResourceError:
        """Returns the error that ends a run whose folder was moved. Args: state: says whether the state was saved."""
        problem = f"was moved to {self.path} while the run was writing to it; {state}"
        return ResourceError(str(self._given), problem, "move it back, then run the same command again to resume")

    def _take(self, config: str, differences: Callable[[str], list[str]]) -> RunLock | None:
        trained = list_checkpoints(self.checkpoints) or (self.metrics.exists() and self.metrics.stat().st_size > 0)
        if self.config.exists() and trained:
            try:
                differing = differences(self.config.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, ConfigError) as e:
                reason = e.problem if isinstance(e, ConfigError) else "not UTF-8 text"
                remedy = "restore the file, or remove it to continue with the configuration given now"
                raise ResourceError(str(self.config), f"the file is corrupt: {reason}", remedy) from e
            if differing and self._read_only:
                self.is_foreign = True
                text = "%s contains a run with a different configuration, which the dry run ignores: %s"
                log.warning(text, self.path, "; ".join(differing))
            elif differing:
                remedy = "restore the keys, or set a different --tag"
                if all(line.startswith("TRAIN.") for line in differing):
                    remedy += f"; to continue from here, --tag NEW --resume {quoted(self.checkpoints / 'last.pth')}"
                problem = f"belongs to a run with a different configuration: {'; '.join(differing)}"
                raise ConfigError(str(self.path), problem, remedy)
        where = f"{platform.node()}, {count(self.world.size, 'rank')} on {device_name(self.world.device)}"
        lines = [f"machine: {where}; torch {torch.__version__}", f"output: {self.path}"]
        if self._read_only:
            log_lines(lines)
            return None
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        owner = RunLock.acquire(self.path, self.world.abort)
        remove_leftovers(self.checkpoints)
        if not trained:
            write_text(self.config, config)
        write_text(self.path / "env.json", json.dumps(_environment(self.world), indent=2) + "\n")
        log_to_file(self.path / "log.txt")
        log_lines(lines)
        if not supports_links(self.checkpoints):
            log.info("no symbolic links in %s: last.txt and best.txt will hold file names instead", self.checkpoints)
        return owner

    def begin(self, provenance: Provenance, state: TrainState) -> None:
        """Writes the configuration that the run continues with and the files of its data, and restores last.pth and
        best.pth if a save was interrupted before they were updated. Raises: ResourceError."""
        with write_errors(self.path, "OUTPUT"):
            write_text(self.config, provenance.config)
            for name, text in provenance.info.files().items():
                write_text(self.path / name, text)
        best = self.checkpoints / checkpoint_name(state.best_epoch, state.best_step or None)
        if best.exists():
            point_to(self.checkpoints / "best.pth", best)
        own = checkpoint_name(state.epoch, state.step) if state.step else checkpoint_name(state.epoch - 1)
        if (self.checkpoints / own).exists():
            point_to(self.checkpoints / "last.pth", self.checkpoints / own)


def path_of_run(cfg: CfgNode) -> Path:
    """Returns the output folder of a run."""
    return Path(cfg.OUTPUT, cfg.MODEL.NAME, cfg.TAG)


def _environment(world: World) -> dict[str, Any]:
    """Returns everything the results depend on besides the configuration."""
    root = Path(__file__).resolve().parents[2]
    try:
        describe = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(describe, cwd=root, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # git is not installed
        commit = None
    return {
        "command": [sys.executable, *sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": commit,
        "versions": versions(),
        "host": platform.node(),
        "machine": platform.platform(),
        "device": device_name(world.device),
        "processes": world.size,
    }
