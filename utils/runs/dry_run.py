"""--dry-run: estimates the time, memory and disk space of a run from a few updates, without writing anything."""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import closing
from statistics import median
from typing import Protocol

import torch
from torch import nn

from utils.batches import Batch
from utils.checkpoints.files import check_space, free_mib
from utils.cost import peak_memory
from utils.distributed.world import World
from utils.errors import count
from utils.runs.folder import RunFolder
from utils.terminal import duration, track
from utils.training.loop import train_epoch
from utils.training.objective import Objective
from utils.training.plan import RunPlan
from utils.training.state import TrainState
from utils.training.update import Update

log = logging.getLogger(__name__)
UPDATES = 6  # the first one allocates, compiles and waits for the loader: it is excluded
BATCHES = 5  # of an evaluation; likewise


class Data(Protocol):
    """The data, as seen by a dry run. `val`: the batches of an evaluation, None for no evaluation."""

    @property
    def val(self) -> Sized | None: ...
    def epoch(self, epoch: int, first_update: int = 0) -> Iterator[Batch]: ...
    def evaluate(self, model: nn.Module, limit: int | None = None) -> object: ...


def dry_run(state: TrainState, data: Data, objective: Objective, plan: RunPlan, folder: RunFolder, keep: int) -> None:
    """Trains for a few updates and logs the time, memory and disk space of the run. `state` is unusable afterwards.

    Args: folder: the run's folder, which need not exist; keep: checkpoints to keep, 0 for all.
    Raises: as for training; ResourceError if disk space is insufficient.
    """
    world = folder.world
    if state.step >= plan.updates_in(state.epoch):  # only the evaluation of that epoch is pending
        state.epoch, state.step = state.epoch + 1, 0
    if state.epoch >= plan.epochs or state.finished(plan):
        log.info("dry run: all %s are done; --tag NAME starts another run", count(plan.epochs, "epoch"))
        return
    left, epochs = plan.total_updates - state.done(plan), plan.epochs - state.epoch
    updates = min(UPDATES, plan.updates_in(state.epoch) - state.step)
    pace, batches = Pace(world.device), data.epoch(state.epoch, state.step)
    with closing(batches):  # type: ignore[type-var]
        first = track(_first(batches, updates), "dry run", updates * plan.shape.accumulation, "batches")
        train_epoch(state, pace.watch(first), objective, plan, pace.lap)
    update = pace.seconds
    evaluation = _evaluation_seconds(state, data, world)
    epoch = plan.updates_per_epoch * update + evaluation
    evaluations = plan.evaluations_after(plan.total_updates - left)
    each, whole = state.checkpoint_bytes() / 2**20, left * update + evaluations * evaluation
    peak = max(world.gather_objects(peak_memory(world.device)))
    log.info(
        f"dry run: loss {pace.losses[-1]:.4f}, gradient norm {pace.norms[-1]:.3f} after"
        f" {count(len(pace.norms), 'update')}; an update takes {update:.3f} s ({pace.waiting:.0%} of it waiting for"
        f" data), {plan.shape.global_batch / update:.1f} images/s"
    )
    log.info(
        f"  an epoch  about {duration(epoch)}: {count(plan.updates_per_epoch, 'update')}"
        f" {duration(epoch - evaluation)}, evaluation {duration(evaluation)}"
    )
    log.info(f"  the run   about {duration(whole)} for {count(epochs, 'epoch')}, excluding saves")
    log.info(f"  memory    {peak:,} MiB at the peak of {'a rank' if world.size > 1 else 'the process'}, {_room(world)}")
    kept = keep or max(epochs, evaluations)
    files = kept + 2  # including the best, and the one being written
    log.info(
        f"  disk      {count(files, 'checkpoint')} of {each:,.0f} MiB = {files * each:,.0f} MiB at most;"
        f" {free_mib(folder.checkpoints):,.0f} MiB are free"
    )
    log.info("  nothing was written to the output folder")
    if world.is_main:
        check_space(folder.checkpoints, state.checkpoint_bytes(), kept)


class Pace:
    """Times updates, and the wait for batches within them. Collects `losses` and `norms`."""

    def __init__(self, device: torch.device):
        self._device, self._waited = device, 0.0
        self.losses: list[float] = []
        self.norms: list[float] = []
        self._laps: list[tuple[float, float]] = []  # total, waiting
        self._since = time.perf_counter()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches."""
        iterator = iter(batches)
        while True:
            requested = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - requested
            if batch is None:
                return
            yield batch

    def lap(self, update: Update) -> None:
        """Must be called after every update; waits for the device."""
        self.losses.append(float(update.losses["loss"]))
        self.norms.append(update.grad_norm)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._laps.append((now - self._since, self._waited))
        self._since, self._waited = now, 0.0

    @property
    def seconds(self) -> float:
        """The median time of an update, excluding the first if there are others."""
        return median(whole for whole, _ in self._laps[1:] or self._laps)

    @property
    def waiting(self) -> float:
        """The fraction of time spent waiting for batches."""
        laps = self._laps[1:] or self._laps
        return sum(waited for _, waited in laps) / sum(whole for whole, _ in laps)


def _first(batches: Iterable[Batch], updates: int) -> Iterator[Batch]:
    """Yields the batches of the first `updates` updates."""
    for batch in batches:
        yield batch
        updates -= batch.ends_update
        if not updates:
            return


def _evaluation_seconds(state: TrainState, data: Data, world: World) -> float:
    """Estimates the duration of an evaluation, 0 if there is none."""
    if data.val is None:
        return 0.0
    # the same on all ranks, even those without samples: an evaluation is a collective operation
    batches = max(world.gather_objects(len(data.val)))
    seconds = []
    for limit in (1, min(BATCHES, batches)):
        started = time.perf_counter()
        data.evaluate(state.evaluated, limit)
        seconds.append(time.perf_counter() - started)
    if batches <= BATCHES:
        return seconds[1]
    return seconds[0] + (batches - 1) * max(0.0, seconds[1] - seconds[0]) / (BATCHES - 1)


def _room(world: World) -> str:
    if world.device.type == "cuda":
        return f"of {torch.cuda.get_device_properties(world.device).total_memory // 2**20:,} MiB on {world.device}"
    return "without the loader workers"
