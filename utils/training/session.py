"""A run and its output folder: whose it is, where training starts, when it is saved."""

import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from utils.checkpoints.files import (
    checkpoint_name,
    find_newest,
    list_checkpoints,
    point_to,
    read_checkpoint,
    remove_leftovers,
    remove_old,
    save_checkpoint,
    write_whole,
)
from utils.distributed import World
from utils.errors import CheckpointError, PlanError, ResourceError
from utils.evaluation.metrics import EvalResult, finite
from utils.interrupt import Interrupt
from utils.training.curves import draw_curves
from utils.training.journal import Journal, log_to_file
from utils.training.loop import Update
from utils.training.plan import RunPlan
from utils.training.progress import Progress
from utils.training.state import TrainState

log = logging.getLogger(__name__)
T = TypeVar("T")


class Load(Protocol):
    """Copies the weights that a file holds into a model; returns a line that says what was loaded."""

    def __call__(
        self, model: torch.nn.Module, contents: Mapping[str, Any], origin: str, head_for: Sequence[str] | None = None
    ) -> str: ...


class OutputFolder:
    """output/<MODEL.NAME>/<TAG>/, which belongs to one configuration."""

    def __init__(self, path: Path, world: World):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._world = world

    def claim(self, config: str, differences: Callable[[str], list[str]]) -> None:
        """Make the folder this run's, or find that it is: only the main process writes.

        Args: config: the resolved configuration; differences: lines for the keys in which another one differs.
        Raises: PlanError if another configuration has trained here; ResourceError if it cannot be written.
        """
        written = self.path / "config.yaml"
        metrics = self.path / "metrics.jsonl"
        trained = list_checkpoints(self.checkpoints) or (metrics.exists() and metrics.stat().st_size > 0)
        if written.exists() and trained:
            differing = differences(written.read_text(encoding="utf-8"))
            if differing:
                raise PlanError(
                    f"the output folder belongs to a run with another configuration: {self.path}:"
                    f" {'; '.join(differing)}: set the keys back or give another --tag"
                )
        self._world.barrier()  # no process reads what the next lines replace
        if not self._world.is_main:
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.checkpoints)
            if not trained:
                write_whole(written, config)
            write_whole(self.path / "env.json", json.dumps(_environment(self._world), indent=2) + "\n")
            log_to_file(self.path / "log.txt")
        except OSError as e:
            raise ResourceError(f"cannot write the output folder ({e.strerror}): {self.path}: set OUTPUT") from e


@dataclass(frozen=True)
class Start:
    """Where training may go on from.

    `load` copies weights into a model; `fetch` turns a name into a local file; `expected` is what a checkpoint must
    share: class_names, global_batch, data_fingerprint, data_counts; `resume` and `pretrained` are names of files, or
    empty; `accept_changes`: go on although the training samples are others.
    """

    load: Load
    fetch: Callable[[str], Path]
    expected: dict[str, Any]
    auto_resume: bool
    resume: str
    pretrained: str
    first_epoch: int
    accept_changes: bool = False


def start_from(start: Start, state: TrainState, plan: RunPlan, folder: OutputFolder, world: World) -> None:
    """Bring `state` to where training goes on, and say in one line where that is and why.

    The newest good checkpoint of this run, else the file `resume`, else the weights `pretrained`, else fresh weights.

    Raises: CheckpointError, PlanError, and what `start.load` raises.
    """
    newest = None
    if world.is_main and start.auto_resume:
        newest = find_newest(folder.checkpoints)
    elif world.is_main and list_checkpoints(folder.checkpoints):
        raise PlanError(
            f"the output folder holds checkpoints that would be overwritten: {folder.path}:"
            " give another --tag, or go on from them with TRAIN.AUTO_RESUME true"
        )
    own = world.tell(newest[0] if newest else None)
    if own or start.resume:
        origin = own or start.fetch(start.resume)
        line = _resume(state, newest[1] if newest else read_checkpoint(origin), origin, start)
        reason = "the newest checkpoint in the output folder" if own else "--resume"
        log.info("weights: %s (%s), at epoch %d, update %d", line, reason, state.epoch, state.update)
        if own is None:
            state.forget_best()  # that checkpoint lies in another folder
        if state.epoch >= plan.epochs:
            log.info("nothing left to train: %d of %d epochs are done", state.epoch, plan.epochs)
        return
    state.begin(start.first_epoch, plan)
    if start.pretrained:
        contents = read_checkpoint(start.fetch(start.pretrained))
        line = start.load(state.model, contents, start.pretrained, start.expected["class_names"])
        state.average_from_here()
        log.info("weights: %s (--pretrained)", line)
    else:
        log.info("weights: fresh (no checkpoint in the output folder, no --resume, no --pretrained)")


def _resume(state: TrainState, saved: dict[str, Any], origin: Path, start: Start) -> str:
    if not {"model", "optimizer", "counters"} <= saved.keys():
        raise CheckpointError(f"no training state: {origin}: to start from its weights give it to --pretrained")
    _check_expected(saved, start.expected, origin)
    _check_data(saved, start, origin)
    try:
        return state.load_state_dict(saved, lambda model, weights: start.load(model, weights, str(origin)))
    except (KeyError, RuntimeError, TypeError) as e:
        raise CheckpointError(f"the training state does not fit this run ({e}): {origin}: name another file") from e


def _check_expected(saved: dict[str, Any], expected: dict[str, Any], origin: Path) -> None:
    names = saved.get("class_names")
    if names is not None and list(names) != list(expected["class_names"]):
        raise CheckpointError(
            f"the checkpoint has {len(names)} classes, the data {len(expected['class_names'])};"
            f" {_first_difference(names, expected['class_names'])}: {origin}:"
            " to fine-tune on other classes give it to --pretrained"
        )
    batch = saved.get("global_batch")
    if batch is not None and batch != expected["global_batch"]:
        raise PlanError(
            f"the run trained with a global batch of {batch}, now it is {expected['global_batch']}: {origin}:"
            f" set TRAIN.GLOBAL_BATCH_SIZE {batch}"
        )


def _check_data(saved: dict[str, Any], start: Start, origin: Path) -> None:
    now = start.expected
    if saved.get("data_fingerprint") in (None, now["data_fingerprint"]):
        return
    changed = "the names of files differ"
    for name, before, after in zip(now["class_names"], saved.get("data_counts", ()), now["data_counts"], strict=False):
        if before != after:
            changed = f"class {name} had {before} files, now {after}"
            break
    if start.accept_changes:
        log.warning("the training samples changed since the checkpoint was saved (%s): %s", changed, origin)
        return
    raise CheckpointError(
        f"the training samples changed since the checkpoint was saved: {changed}: {origin}: set them back, or go on"
        " with the new ones by DATA.ACCEPT_CHANGES true"
    )


def _first_difference(one: Sequence[str], other: Sequence[str]) -> str:
    for label, (a, b) in enumerate(zip_longest(one, other, fillvalue="none")):
        if a != b:
            return f"class {label} is {a} in the checkpoint and {b} in the data"
    return "none differs"


class Session:
    """What happens around the updates of a training run: logs, checkpoints, the end of an epoch."""

    def __init__(
        self,
        state: TrainState,
        plan: RunPlan,
        folder: OutputFolder,
        world: World,
        *,
        print_freq: int,
        save_freq: int,
        save_updates: int,
        save_minutes: float,
        keep: int,
        facts: dict[str, Any],
    ):
        """`facts`: what every checkpoint holds besides the state (class_names, config, ...)."""
        self._state, self._plan, self._folder, self._world = state, plan, folder, world
        self._save_freq, self._save_updates, self._save_seconds = save_freq, save_updates, 60 * save_minutes
        self._keep, self._facts = keep, facts
        self._interrupt = Interrupt()
        self.journal = Journal(folder.path if world.is_main else None, state.update)
        self.progress = Progress(state, plan, world=world, journal=self.journal, print_freq=print_freq)
        self._saved_at = time.monotonic()
        self._check_every = min(print_freq, 10)
        if world.is_main:
            write_whole(folder.path / "config.yaml", facts["config"])
            self._mend_links()

    def _mend_links(self) -> None:
        """Point last.pth and best.pth where a save that was interrupted after its rename did not come to point them."""
        folder = self._folder.checkpoints
        best = folder / checkpoint_name(self._state.best_epoch)
        if best.exists():
            point_to(folder / "best.pth", best)
        state = self._state
        own = checkpoint_name(state.epoch, state.step) if state.step else checkpoint_name(state.epoch - 1)
        if (folder / own).exists():
            point_to(folder / "last.pth", folder / own)

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass the batches of an epoch on, measuring how long training waits; Ctrl-C ends it after an update."""
        self._interrupt.listen()
        return self.progress.watch(batches)

    def interruptible(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass the batches of an evaluation on; Ctrl-C ends it between two of them."""
        return self._interrupt.watch(batches)

    def finish(self) -> None:
        """Say where everything lies."""
        self.journal.close()
        if self._state.step or not self._state.update:
            return
        folder = self._folder.path
        log.info(f"trained {self._plan.epochs} epochs, best Acc@1 {self._state.best_top1:.3f}: {folder}")

    def after_update(self, update: Update) -> None:
        """Log and save as far as it is due. `state.step` of `updates_per_epoch` updates are done."""
        state = self._state
        line_due = self.progress.record(update)
        by_count = bool(self._save_updates) and state.update % self._save_updates == 0
        by_time = False
        clock_due = bool(self._save_seconds) and state.update % self._check_every == 0
        if line_due or by_count or clock_due:
            overdue = bool(self._save_seconds) and time.monotonic() - self._saved_at >= self._save_seconds
            by_time = self.progress.collect(wish=overdue)
        if line_due:
            self.progress.report()
        if (by_count or by_time) and state.step < self._plan.updates_per_epoch:
            self._save(checkpoint_name(state.epoch, state.step))
        self._interrupt.check()

    def end_epoch(self, result: EvalResult) -> None:
        """Take in the evaluation of the epoch; save, with the state already at the start of the next one."""
        state, epoch = self._state, self._state.epoch
        best = result.top1 > state.best_top1
        if best:
            state.best_top1, state.best_epoch = result.top1, epoch
        log.info(f"{result.line()}, best {state.best_top1:.3f} of epoch {state.best_epoch}")
        train_loss = finite(state.means["epoch_loss"].value)
        record = {"kind": "val", "epoch": epoch, "update": state.update, "train_loss": train_loss}
        self.journal.write(
            record | result.as_dict() | {"loss": finite(result.loss)},
            {"val/loss": result.loss, "val/top1": result.top1, f"val/top{result.k}": result.topk},
        )
        state.epoch, state.step = epoch + 1, 0
        state.means["epoch_loss"].clear()
        due = (epoch + 1) % self._save_freq == 0 or epoch + 1 == self._plan.epochs
        if due or best or (self._save_updates and state.update % self._save_updates == 0):
            self._save(checkpoint_name(epoch), best)
        if self._world.is_main:
            draw_curves(self.journal.metrics, self._folder.path / "curves.png", self._plan.updates_per_epoch)

    def _save(self, name: str, best: bool = False) -> None:
        """The main process writes; the others go on, and meet it at the next exchange of gradients."""
        if self._world.is_main:
            folder = self._folder.checkpoints
            with self.progress.pause():
                path = save_checkpoint(
                    folder, name, {**self._facts, "versions": versions(), **self._state.state_dict()}
                )
                point_to(folder / "last.pth", path)
                if best:
                    point_to(folder / "best.pth", path)
                remove_old(folder, self._keep)
            log.info("saved %s%s", path, " (best so far)" if best else "")
        self._saved_at = time.monotonic()


def _environment(world: World) -> dict[str, Any]:
    """Where these numbers came from."""
    root = Path(__file__).resolve().parents[2]
    try:
        ask = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(ask, cwd=root, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git here
        commit = None
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "command": [sys.executable, *sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": commit,
        "versions": versions(),
        "host": platform.node(),
        "machine": platform.platform(),
        "device": gpu or f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "processes": world.size,
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("torchvision", "timm", "numpy", "pillow")
    own = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with the tag of its build
    return {**own, **{name: version(name) for name in names}}
