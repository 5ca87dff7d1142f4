"""How a run is doing: interval means, speed, waiting for data, the remaining time."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from utils.distributed import World
from utils.evaluation.metrics import finite
from utils.profiling import peak_memory
from utils.training.journal import Journal
from utils.training.loop import Update
from utils.training.plan import RunPlan
from utils.training.state import TrainState

log = logging.getLogger(__name__)
T = TypeVar("T")


class Progress:
    """Collects updates, and says every `print_freq` of them how training goes.

    Losses stay on the device until a line is due; then all processes gather theirs. Every process must therefore call
    `record` and `collect` alike.
    """

    def __init__(self, state: TrainState, plan: RunPlan, *, world: World, journal: Journal, print_freq: int):
        self._state, self._plan, self._world, self._journal = state, plan, world, journal
        self._print_freq = print_freq
        self._pending: list[Tensor] = []
        self._norms: list[float] = []
        self._weights: list[int] = []
        self._rate = 0.0
        self._started = self._interval_started = time.perf_counter()
        self._waited = 0.0
        self._updates = self._interval_updates = 0
        self._interval_samples = state.samples
        self._bar: tqdm | None = None

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, measuring how long they let us wait."""
        self._bar = self._new_bar()
        now = time.perf_counter()  # since the last line there was an evaluation, or the start of the run
        self._started += now - self._interval_started
        self._interval_started = now
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                break
            finally:
                self._waited += time.perf_counter() - asked
            yield batch
        if self._bar is not None:
            self._bar.close()

    def record(self, update: Update) -> bool:
        """Take in an update of the run; returns whether a log line is due (the same on every process)."""
        self._pending.append(update.loss)
        # weighted by its images, so that a small last update counts for less; a skipped one says nothing of the loss
        self._weights.append(self._plan.update_size(self._state.step - 1) if update.applied else 0)
        self._norms.append(update.grad_norm)
        self._rate = update.learning_rate
        self._updates += 1
        self._interval_updates += 1
        if self._bar is not None:
            self._bar.update()
        state = self._state
        if not update.applied:
            log.warning(
                "update %d skipped: its gradient is not finite (%d skipped so far)", state.update - 1, state.skipped
            )
        return (state.step - 1) % self._print_freq == 0 or state.step == self._plan.updates_per_epoch

    def collect(self, wish: bool = False) -> bool:
        """Bring the pending losses of all processes together into the means of the state.

        Args: wish: anything the main process wants all of them to know. Returns: the main process's wish.
        """
        device = self._world.device
        flag = torch.tensor(float(wish), device=device)
        rows = self._world.gather(torch.stack([*[loss.float() for loss in self._pending], flag]))
        means = (rows[:, :-1].sum(0) / self._world.size).tolist()
        for loss, norm, weight in zip(means, self._norms, self._weights, strict=True):
            if weight:
                self._state.means["loss"].add(loss, weight)
                self._state.means["epoch_loss"].add(loss, weight)
                self._state.means["grad_norm"].add(norm)
        self._pending, self._norms, self._weights = [], [], []
        return bool(rows[0, -1])

    def report(self) -> None:
        """Log line, metrics line and scalars of the interval; starts a new one. `collect` comes first."""
        state, plan, now = self._state, self._plan, time.perf_counter()
        seconds = (now - self._interval_started) / max(1, self._interval_updates)
        average = (now - self._started) / max(1, self._updates)
        waiting = min(1.0, self._waited / max(1e-9, now - self._interval_started))
        speed = (state.samples - self._interval_samples) / max(1e-9, now - self._interval_started)
        loss, norm = state.means["loss"].value, state.means["grad_norm"].value
        log.info(
            f"Train: [{state.epoch}/{plan.epochs}][{state.step - 1}/{plan.updates_per_epoch}]"
            f"\teta {timedelta(seconds=int(average * (plan.total_updates - state.update)))} lr {self._rate:.6f}"
            f"\ttime {seconds:.4f} ({average:.4f})\tloss {loss:.4f} ({state.means['epoch_loss'].value:.4f})"
            f"\tgrad_norm {norm:.4f}\tmem {peak_memory(self._world.device)}MB"
            f"\t{speed:.0f} images/s, {waiting:.0%} waiting for data"
        )
        record = {
            "kind": "train",
            "epoch": state.epoch,
            "step": state.step,
            "update": state.update,
            "samples": state.samples,
            "lr": self._rate,
            "loss": finite(loss),  # none if every update was skipped
            "grad_norm": finite(norm),
            "skipped": state.skipped,
        }
        scalars = {"train/loss": loss, "train/lr": self._rate, "train/grad_norm": norm}
        self._journal.write(record, {**scalars, "speed/images_per_s": speed, "speed/waiting_for_data": waiting})
        state.means["loss"].clear()
        state.means["grad_norm"].clear()
        self._interval_started, self._waited, self._interval_updates = now, 0.0, 0
        self._interval_samples = state.samples

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out of the speed what is no training, such as saving."""
        begun = time.perf_counter()
        yield
        paused = time.perf_counter() - begun
        self._started += paused
        self._interval_started += paused

    def _new_bar(self) -> tqdm | None:
        if not (self._world.is_main and sys.stderr.isatty()):
            return None
        return tqdm(
            total=self._plan.updates_per_epoch,
            initial=self._state.step,
            desc=f"epoch {self._state.epoch}",
            unit="update",
            leave=False,
            dynamic_ncols=True,
        )
