"""Progress of a run: means per log interval, speed, time spent waiting for data, remaining time."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from utils.distributed.world import World
from utils.logs.metrics_file import MetricsFile, finite, refuse_reserved
from utils.terminal import IN_BAR, Bar, duration
from utils.training.plan import RunPlan
from utils.training.state import Mean, TrainState
from utils.training.update import Update

log = logging.getLogger(__name__)
T = TypeVar("T")


class Progress:
    """Records updates and reports every `print_freq` of them.

    Losses stay on the device until a report is due and are then gathered from all ranks, so all ranks must call
    `record` and `collect` in the same order.
    """

    def __init__(self, state: TrainState, plan: RunPlan, *, world: World, journal: MetricsFile, print_freq: int):
        self._state, self._plan, self._world, self._journal = state, plan, world, journal
        self._print_freq = print_freq
        self._pending: list[tuple[Update, int]] = []  # with the samples of each update
        self._parts = [name.removeprefix("loss/") for name in state.means if name.startswith("loss/")]
        self._rate = 0.0
        self._started = self._interval_started = time.perf_counter()
        self._waited = 0.0
        self._updates = 0
        self._interval_samples = state.samples
        self._bar = self._new_bar()

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches and measures the time spent waiting for them."""
        now = time.perf_counter()  # the time since the last report was an evaluation, or the start of the run
        self._started += now - self._interval_started
        self._interval_started = now
        iterator = iter(batches)
        with self._new_bar() as self._bar:
            while True:
                requested = time.perf_counter()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                finally:
                    self._waited += time.perf_counter() - requested
                yield batch

    def record(self, update: Update) -> bool:
        """Records an update; returns whether a report is due (the same on every rank)."""
        state = self._state
        self._pending.append((update, self._plan.shape.update_size(state.step - 1)))
        self._rate = update.learning_rate
        self._updates += 1
        self._bar.advance()
        return state.step % self._print_freq == 0 or state.step == self._plan.updates_in(state.epoch)

    def collect(self) -> None:
        """Adds all ranks' pending losses to the state's running means; call `TrainState.sync` first."""
        if not self._pending:
            return
        values: list[Tensor] = [value.float() for update, _ in self._pending for value in update.losses.values()]
        rows = self._world.gather(torch.stack(values))
        averages = iter((rows.sum(0) / self._world.size).tolist())
        for update, samples in self._pending:
            losses = {name: next(averages) for name in update.losses}
            if not update.applied:
                continue
            # weighted by samples, so that a small last update counts less
            for name, value in losses.items():
                self._mean(name).add(value, samples)
            self._state.means["epoch_loss"].add(losses["loss"], samples)
            self._state.means["grad_norm"].add(update.grad_norm)
        self._pending = []

    def _mean(self, name: str) -> Mean:
        if name != "loss" and name not in self._parts:
            refuse_reserved([name])
            self._parts.append(name)
        return self._state.means.setdefault(name if name == "loss" else f"loss/{name}", Mean())

    def report(self) -> None:
        """Logs the interval, writes its metrics and scalars, and starts a new one. Must follow `collect`."""
        state, plan, now = self._state, self._plan, time.perf_counter()
        seconds = max(1e-9, now - self._interval_started)
        waiting = min(1.0, self._waited / seconds)
        speed = (state.samples - self._interval_samples) / seconds
        loss, norm = state.means["loss"].value, state.means["grad_norm"].value
        parts = {name: self._mean(name).value for name in self._parts}
        left = duration(self.seconds_left())
        texts = [f"[{state.epoch}/{plan.epochs}][{state.step}/{plan.updates_per_epoch}] loss {loss:.4f}"]
        texts += [f"{name} {value:.3g}" for name, value in parts.items()]
        images = f"{speed:.2f} img/s" if speed < 100 else f"{speed:,.0f} img/s"
        texts += [f"lr {self._rate:.2e}", f"norm {norm:.2f}", images, f"eta {left}"]
        texts += [f"scale {state.scaler.get_scale():g}"] if state.scaler.is_enabled() else []
        texts += [f"waits {waiting:.0%}"] if waiting >= 0.05 else []  # for data
        log.info(" ".join(texts), extra=IN_BAR)
        self._bar.advance(0, f"loss {loss:.4f}, {images}, run {left}, epoch")
        record = {
            "kind": "train",
            "epoch": state.epoch,
            "step": state.step,
            "update": state.update,
            "samples": state.samples,
            "lr": self._rate,
            "loss": finite(loss),  # None if every update was skipped
            "grad_norm": finite(norm),
            "skipped": state.skipped,
            **{name: finite(value) for name, value in parts.items()},
        }
        scalars = {"loss": loss, "lr": self._rate, "grad_norm": norm, **parts}
        speeds = {"speed/images_per_s": speed, "speed/waiting_for_data": waiting}
        if state.scaler.is_enabled():
            scalars["loss_scale"] = state.scaler.get_scale()
        self._journal.write(record, {f"train/{name}": value for name, value in scalars.items()} | speeds)
        for name in ("loss", "grad_norm", *(f"loss/{part}" for part in self._parts)):
            state.means[name].clear()
        self._interval_started, self._waited = now, 0.0
        self._interval_samples = state.samples

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the block, such as a save, from the measured speed."""
        begun = time.perf_counter()
        yield
        paused = time.perf_counter() - begun
        self._started += paused
        self._interval_started += paused

    def seconds_left(self) -> float:
        """Estimates the remaining time from the speed so far, excluding evaluations and saves."""
        average = (time.perf_counter() - self._started) / max(1, self._updates)
        return average * (self._plan.total_updates - self._state.done(self._plan))

    def _new_bar(self) -> Bar:
        return Bar(f"epoch {self._state.epoch}", self._plan.updates_in(self._state.epoch), "", self._state.step)
