"""What happens around the updates of a training run: logs, checkpoints, the end of an epoch."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from yacs.config import CfgNode

from utils.checkpoints.files import checkpoint_name, link_to, remove_old, save_checkpoint
from utils.distributed import World
from utils.evaluation.metrics import finite
from utils.files import write_text
from utils.interrupt import Interrupt
from utils.training.curves import draw_curves
from utils.training.journal import Journal
from utils.training.loop import Update
from utils.training.objective import Best, Evaluation
from utils.training.plan import RunPlan
from utils.training.progress import Progress
from utils.training.provenance import Provenance
from utils.training.run_folder import RunFolder
from utils.training.state import TrainState

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class SessionOptions:
    """Log every `print_freq` updates; save every `save_freq` epochs, and within an epoch every `save_updates` updates
    or `save_minutes` minutes (0: never); keep the newest `keep` checkpoints (0: all). `best`: the metric that decides
    which checkpoint is the best, None if there is none."""

    print_freq: int = 10
    save_freq: int = 1
    save_updates: int = 0
    save_minutes: float = 0.0
    keep: int = 3
    best: Best | None = None

    @staticmethod
    def from_config(cfg: CfgNode, best: Best | None) -> "SessionOptions":
        return SessionOptions(
            print_freq=cfg.PRINT_FREQ,
            save_freq=cfg.SAVE_FREQ,
            save_updates=cfg.TRAIN.SAVE_EVERY_UPDATES,
            save_minutes=cfg.TRAIN.SAVE_EVERY_MINUTES,
            keep=cfg.TRAIN.KEEP_CHECKPOINTS,
            best=best,
        )


class Session:
    """Everything but the updates themselves: the loop calls it after each of them and after every epoch."""

    def __init__(
        self,
        state: TrainState,
        plan: RunPlan,
        folder: RunFolder,
        world: World,
        *,
        options: SessionOptions,
        provenance: Provenance,
        interrupt: Interrupt,
    ):
        self._state, self._plan, self._folder, self._world = state, plan, folder, world
        self._best, self._options, self._provenance, self._interrupt = options.best, options, provenance, interrupt
        self.journal = Journal(folder.path if world.is_main else None, state.update)
        self.progress = Progress(state, plan, world=world, journal=self.journal, print_freq=options.print_freq)
        self._saved_at = time.monotonic()
        self._check_every = min(options.print_freq, 10)
        if world.is_main:
            write_text(folder.config, provenance.config)
            folder.repair_links(state)

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Passes the batches of an epoch on and measures waiting times; from here on Ctrl-C is deferred."""
        self._interrupt.listen()
        return self.progress.watch(batches)

    def after_update(self, update: Update) -> None:
        """Logs and saves if due. `state.step` of `updates_per_epoch` updates are done."""
        state, options = self._state, self._options
        report_due = self.progress.record(update)
        by_count = bool(options.save_updates) and state.update % options.save_updates == 0
        by_time = False
        clock_due = bool(options.save_minutes) and state.update % self._check_every == 0
        if report_due or by_count or clock_due:
            overdue = bool(options.save_minutes) and time.monotonic() - self._saved_at >= 60 * options.save_minutes
            by_time = self.progress.collect(wish=overdue)
        if report_due:
            self.progress.report()
        if (by_count or by_time) and state.step < self._plan.updates_per_epoch:
            self._save(checkpoint_name(state.epoch, state.step))
        self._interrupt.check()

    def end_epoch(self, evaluation: Evaluation | None) -> None:
        """Takes in the evaluation of the epoch and saves the state as it is at the start of the next one."""
        state, epoch = self._state, self._state.epoch
        best = self._is_best(evaluation)
        self._record(evaluation)
        state.epoch, state.step = epoch + 1, 0
        state.means["epoch_loss"].clear()
        due = (epoch + 1) % self._options.save_freq == 0 or epoch + 1 == self._plan.epochs
        by_count = bool(self._options.save_updates) and state.update % self._options.save_updates == 0
        if due or best or by_count:
            self._save(checkpoint_name(epoch), best)
        if self._world.is_main:
            metric = self._best.metric if self._best else None
            draw_curves(self.journal.metrics, self._folder.path / "curves.png", self._plan.updates_per_epoch, metric)

    def finish(self) -> None:
        """Logs where everything is."""
        self.journal.close()
        state = self._state
        if state.step or not state.update:
            return
        best = ""
        if self._best is not None and state.best_value is not None:
            best = f", best {self._best.metric} {state.best_value:.3f}"
        log.info(f"trained {self._plan.epochs} epochs{best}: {self._folder.path}")

    def _is_best(self, evaluation: Evaluation | None) -> bool:
        if evaluation is None or self._best is None:
            return False
        state, value = self._state, evaluation.metrics[self._best.metric]
        if not self._best.improves(value, state.best_value):
            return False
        state.best_value, state.best_epoch = value, state.epoch
        return True

    def _record(self, evaluation: Evaluation | None) -> None:
        """Logs the evaluation; without one, the mean loss of the epoch alone."""
        state = self._state
        record: dict[str, Any] = {
            "kind": "val" if evaluation else "epoch",
            "epoch": state.epoch,
            "update": state.update,
        }
        record["train_loss"] = finite(state.means["epoch_loss"].value)
        if evaluation is None:
            self.journal.write(record, {})
            return
        of_best = "" if state.best_value is None else f", best {state.best_value:.3f} of epoch {state.best_epoch}"
        log.info(evaluation.line + of_best)
        scalars = evaluation.metrics if evaluation.scalars is None else evaluation.scalars
        self.journal.write(
            record | {name: finite(value) for name, value in evaluation.metrics.items()},
            {f"val/{name}": value for name, value in scalars.items()},
        )

    def _save(self, name: str, best: bool = False) -> None:
        """Saves a checkpoint. Every rank takes part in collecting the state; the main rank writes it."""
        contents = {**self._provenance.as_dict(), **self._state.state_dict()}
        if self._world.is_main:
            folder = self._folder.checkpoints
            with self.progress.pause():
                path = save_checkpoint(folder, name, contents)
                link_to(folder / "last.pth", path)
                if best:
                    link_to(folder / "best.pth", path)
                remove_old(folder, self._options.keep)
            log.info("saved %s%s", path, " (best so far)" if best else "")
        self._saved_at = time.monotonic()
