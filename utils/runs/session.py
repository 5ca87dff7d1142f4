"""The training session around the updates: logging, evaluation, checkpoints."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import nn

from configs.schema import KEYS
from utils.batches import Batch
from utils.checkpoints.files import check_space, checkpoint_name, list_checkpoints
from utils.cost import peak_memory
from utils.distributed.signals import MOVED, Interrupt
from utils.errors import NumericsError, count
from utils.files import quoted
from utils.logs.curves import Curves
from utils.logs.metrics_file import MetricsFile, finite, refuse_reserved
from utils.logs.profiler import Profiler
from utils.logs.progress import Progress
from utils.logs.summary import write_summary
from utils.logs.trackers import flat_settings
from utils.runs.folder import RunFolder
from utils.runs.provenance import Provenance
from utils.runs.saver import Saver
from utils.runs.session_options import SessionOptions
from utils.runs.skipped_updates import write_incident
from utils.terminal import SUMMARY, duration
from utils.training.objective import Best, Evaluation
from utils.training.parallel import check_weights, synchronize_buffers, weights_are_finite
from utils.training.plan import RunPlan
from utils.training.state import TrainState
from utils.training.update import Update

log = logging.getLogger(__name__)
CHECK_EVERY = 500  # updates between comparisons of the ranks' weights, in addition to every save


class Subject(Protocol):
    """The task and its data, as seen by a session. `best`: the metric that selects the best checkpoint."""

    @property
    def best(self) -> Best | None: ...
    @property
    def predicts(self) -> bool:
        """Whether scripts/predict.py can use the model."""
        ...

    def evaluate(self, model: nn.Module) -> Evaluation | None:
        """Evaluates on all ranks; returns None if there is nothing to evaluate. Must not affect training."""
        ...

    def show_batch(self, batch: Batch) -> Image.Image:
        """Draws a training batch as the model sees it."""
        ...

    def name_of(self, index: int) -> str:
        """Returns the location of a training sample, for messages."""
        ...


class Session:
    """Everything except the updates: the training loop calls it after every update and every epoch.

    A context manager: on exit, the last checkpoint is on disk, even after an error.
    """

    def __init__(
        self,
        state: TrainState,
        plan: RunPlan,
        folder: RunFolder,
        subject: Subject,
        provenance: Provenance,
        interrupt: Interrupt,
        options: SessionOptions,
    ):
        self._state, self._plan, self._folder, self._world = state, plan, folder, folder.world
        self._subject, self._best = subject, subject.best
        self._options, self._provenance, self._interrupt = options, provenance, interrupt
        world = self._world
        if world.is_main:
            check_space(folder.checkpoints, state.checkpoint_bytes(), options.keep)
        own = folder.path if world.is_main else None
        self.journal = MetricsFile(own, state.update, options.wandb, evaluated=state.evaluated_at == state.update)
        self._curves = Curves(folder.path, plan.updates_per_epoch, self._best)
        self.progress = Progress(state, plan, world=world, journal=self.journal, print_freq=options.print_freq)
        self._saver = Saver(folder.checkpoints, options.keep)
        self._tracer = Profiler(folder.path, world.device) if options.trace and world.is_main else None
        self._first_epoch, self._first_update = state.epoch, state.update
        self._saved_at = self._interval_started = self._started = time.monotonic()
        self._agreed = False  # whether all ranks end the run with the same error
        self._stored: Mapping[str, Any] = {}  # of the last evaluation
        self._interval_samples = state.samples
        self._unjudged: Update | None = None  # its outcome is known after the next update
        if world.is_main:
            folder.begin(provenance, state)
        if world.watchdog is not None:
            world.watchdog.before_exit = self._saver.finish_quietly

    def __enter__(self) -> "Session":
        self._interrupt.defer()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._saver.finish()
            if self._tracer is not None:
                self._tracer.close()
            if self._world.is_main:
                self._curves.finish()
            if kind is None:
                self._conclude()
        finally:
            self.journal.close()
        if kind is None or self._agreed:  # a rank that exits first would terminate rank 0 during the above
            self._world.main_only(lambda: None)

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches of an epoch and measures waiting times."""
        self._tick()
        if self._evaluation_is_pending() and self._state.step < self._plan.updates_in(self._state.epoch):
            self._evaluate_within_epoch()  # the run had been stopped during this evaluation
            if self._state.stopped_early(self._plan):
                return
        first = self._state.update == 0
        for batch in self.progress.watch(batches):
            if first:
                self.journal.show({"train/first_batch": partial(self._subject.show_batch, batch)}, 0)
            first = False
            yield batch
            if self._state.stopped_early(self._plan):
                return

    def after_update(self, update: Update) -> None:
        """Logs, evaluates and saves if due, after `state.step` updates of the epoch.

        Raises: NumericsError after too many consecutive non-finite gradients; DistributedError if the ranks diverged;
        ResourceError if a save failed; TerminatedError, KeyboardInterrupt after a signal.
        """
        state, options, plan = self._state, self._options, self._plan
        self._tick()
        self._judge()
        self._unjudged = update
        if self._tracer is not None:
            self._tracer.step()
        report_due = self.progress.record(update)
        by_count = bool(options.save_updates) and state.update % options.save_updates == 0
        whole = state.step == plan.updates_in(state.epoch)
        evaluates = not whole and plan.evaluates_after(state.epoch, state.step)
        self._watch_clock()
        if report_due or by_count or evaluates:
            self._watch_folder()
        stop, extra = self._interrupt.decide(state.update)
        if report_due or stop or extra or by_count or evaluates:  # a checkpoint contains the means up to here
            state.sync()
            self.progress.collect()
            if report_due:
                self.progress.report()
            self._judge()
        saved = False
        if stop or extra or (by_count and not whole and not evaluates):
            saved = self._save(checkpoint_name(state.epoch, state.step))
        elif state.update % CHECK_EVERY == 0:
            check_weights(state.model, self._world, self._position())
        if stop:
            self._stop(stop, saved)
        if evaluates:
            self._evaluate_within_epoch()
        self._saver.check()

    def end_epoch(self) -> None:
        """Evaluates if due, and saves the state at the start of the next epoch, or within a partial last one, from
        where a longer run can continue. Raises: as for `after_update`.
        """
        state, plan, options, epoch = self._state, self._plan, self._options, self._state.epoch
        if state.stopped_early(plan):  # it was evaluated and saved within the epoch
            return
        last = epoch + 1 == plan.epochs
        evaluates = not plan.eval_every or self._evaluation_is_pending()
        best = self._evaluate(f"epoch {epoch}", last) if evaluates else False
        whole = plan.updates_in(epoch) == plan.updates_per_epoch
        name = checkpoint_name(epoch) if whole else checkpoint_name(epoch, state.step)
        state.epoch, state.step = (epoch + 1, 0) if whole else (epoch, state.step)
        by_count = bool(options.save_updates) and state.update % options.save_updates == 0
        due = evaluates if plan.eval_every else (epoch + 1) % options.save_freq == 0
        if due or last or best or by_count or state.stopped_early(plan):
            self._save(name, best)
        self._draw()

    def _evaluation_is_pending(self) -> bool:
        state = self._state
        return state.evaluated_at != state.update and self._plan.evaluates_after(state.epoch, state.step)

    def _evaluate_within_epoch(self) -> None:
        with self.progress.pause():
            best = self._evaluate(f"update {self._state.update}", last=False)
        self._save(checkpoint_name(self._state.epoch, self._state.step), best)
        self._draw()

    def _evaluate(self, title: str, last: bool) -> bool:
        """Evaluates and records the result; returns whether it is the best so far. Args: last: whether the run ends."""
        state = self._state
        trained, samples = time.monotonic() - self._interval_started, state.samples - self._interval_samples
        modules = [state.model] if state.ema is None else [state.model, state.ema.module]
        synchronize_buffers(modules, self._world)
        evaluation = self._subject.evaluate(state.evaluated)
        stop = self._interrupt.stop_of_evaluation()
        if stop:  # the evaluation is repeated when the run resumes
            self._stop(stop, self._save(checkpoint_name(state.epoch, state.step)))
        self._interval_started = time.monotonic()
        self._watch_folder()
        best = self._is_best(evaluation)
        if evaluation is not None and evaluation.metrics and self._best is not None:
            state.judge(best, self._plan)
        last = last or state.stopped_early(self._plan)
        log.info(
            f"{title}: train loss {state.means['epoch_loss'].value:.4f} in {duration(trained)}, peak"
            f" {peak_memory(self._world.device)} MiB, {duration(self.progress.seconds_left())} left"
        )
        self.journal.time(state.update, trained, samples)
        self._interval_samples = state.samples
        self._record(title, evaluation)
        if state.stopped_early(self._plan):
            log.info("stopping early: no improvement in %s (TRAIN.PATIENCE)", count(state.stale, "evaluation"))
        if evaluation is not None:
            pictures = {**evaluation.each_epoch, **(evaluation.pictures if last else {})}
            self.journal.show({f"val/{name}": draw for name, draw in pictures.items()}, state.update)
        self._stored = {} if evaluation is None else evaluation.stored
        state.evaluated_at = state.update
        state.means["epoch_loss"].clear()
        return best

    def _draw(self) -> None:
        if self._world.is_main:
            self._curves.after_epoch()
            write_summary(self.journal.metrics, self._folder.path / "summary.csv")

    def _conclude(self) -> None:
        """Logs the result of the run, its files, and commands for the next steps."""
        state, folder = self._state, self._folder
        if self._world.is_main and folder.follow_move():
            raise folder.moved_error("the run is complete")
        if (state.step and not state.finished(self._plan)) or not list_checkpoints(folder.checkpoints):
            return
        best, last = folder.checkpoints / "best.pth", folder.checkpoints / "last.pth"
        chosen, trained = last, state.epoch + (state.step > 0) - self._first_epoch
        before = f" after {self._first_epoch}" if self._first_epoch else ""
        lines = [f"trained {count(trained, 'epoch')}{before} in {duration(time.monotonic() - self._started)}"]
        if state.update == self._first_update:
            lines = [f"already trained: {count(self._first_epoch, 'epoch')}"]
        if self._best is not None and state.best_value is not None:
            chosen = best
            lines += [f"  best      {best}: {self._best.metric} {state.best_value:.3f} of epoch {state.best_epoch}"]
        lines += [
            f"  last      {last}",
            f"  curves    {folder.path / 'curves.png'}, metrics.jsonl, tensorboard/, log.txt",
            f"  evaluate  python {_script('main.py')} --eval --resume {quoted(chosen)}",
        ]
        if self._subject.predicts:
            lines += [f"  predict   python {_script('scripts/predict.py')} IMAGE --model {quoted(folder.path)}"]
        for line in lines:
            log.info(line, extra=SUMMARY)
        if self._best is not None and state.best_value is not None:
            settings = flat_settings(self._provenance.config)
            changed = {name for name, value in settings.items() if name in KEYS and value != KEYS[name].default}
            self.journal.finish(settings, changed, {self._best.metric: state.best_value})

    def _watch_clock(self) -> None:
        """Requests a save if the last one was too long ago; as with signals, the ranks agree on the update."""
        now, minutes = time.monotonic(), self._options.save_minutes
        if minutes and self._world.is_main and now - self._saved_at >= 60 * minutes:
            self._interrupt.request_save()
            self._saved_at = now  # no further request until the save is done

    def _watch_folder(self) -> None:
        """Requests a stop if the output folder was moved; until then, files are written to its new location.

        Raises: ResourceError if it was removed.
        """
        if self._world.is_main and self._folder.follow_move():
            self.journal.metrics, self._saver.folder = self._folder.metrics, self._folder.checkpoints
            self._interrupt.request_stop()

    def _stop(self, stop: int, saved: bool) -> None:
        """Raises: TerminatedError, KeyboardInterrupt or ResourceError, on every rank once the state is on disk."""
        self._world.main_only(self._saver.finish)  # a rank that exits first would terminate rank 0 during the save
        self._agreed = True
        outcome = "is saved" if saved else "was not saved, its weights are not finite"
        outcome = f"the state after update {self._state.update} {outcome}"
        if stop == MOVED:
            raise self._world.main_only(lambda: self._folder.moved_error(outcome))
        raise self._interrupt.error(stop, outcome)

    def _judge(self) -> None:
        """Reports the last update if it was skipped. Raises: NumericsError after too many in a row."""
        update, self._unjudged = self._unjudged, None
        if update is None or update.applied:
            return
        state, plan = self._state, self._plan
        log.warning("update %d skipped: non-finite gradient (%d skipped so far)", update.number, state.skipped)
        scale = update.loss_scale if state.scaler.is_enabled() else None
        epoch, step = divmod(state.done(plan) - state.update + update.number, plan.updates_per_epoch)
        details = {
            "update": update.number,
            "epoch": epoch,
            "step": step + 1,
            "learning_rate": update.learning_rate,
            "grad_norm": finite(update.grad_norm),
            "grad_norms": {name: finite(norm) for name, norm in update.stage_norms().items()},
            "loss_scale": scale,
            "skipped_in_row": state.skipped_in_row,
        }
        own = {
            "losses": {name: finite(float(value)) for name, value in update.losses.items()},
            "samples": [self._subject.name_of(index) for index in update.samples],
        }
        write_incident(self._folder.path / f"incidents/update_{update.number}.json", self._world, details, own)
        if state.skipped_in_row < plan.max_skipped:
            return
        self._saver.finish()
        newest = self._world.main_only(lambda: next(iter(list_checkpoints(self._folder.checkpoints)), None))
        self._agreed = True
        again = "start again" if newest is None else f"continue from --resume {quoted(newest)}"
        half = " AMP_DTYPE bfloat16, or" if scale is not None else ""
        scaled = f" and loss scale {scale:g}" if scale is not None else ""
        raise NumericsError(
            plan.lr_key,
            f"no finite gradient in {state.skipped_in_row} consecutive updates, the last is {update.number} at"
            f" learning rate {update.learning_rate:.3g}{scaled}; samples and norms are in"
            f" {self._folder.path / 'incidents'}",
            f"{again} with a different --tag and --opts{half} {plan.lr_key} {plan.base_lr / 2:g}",
        )

    def _is_best(self, evaluation: Evaluation | None) -> bool:
        if evaluation is None or self._best is None or not evaluation.metrics:
            return False
        metrics, metric = evaluation.metrics, self._best.metric
        state, value = self._state, self._world.main_only(lambda: metrics[metric])  # may be rounded otherwise elsewhere
        if not self._best.improves(value, state.best_value):
            return False
        whole = state.step == self._plan.updates_per_epoch
        state.best_value, state.best_epoch, state.best_step = value, state.epoch, 0 if whole else state.step
        return True

    def _record(self, title: str, evaluation: Evaluation | None) -> None:
        """Logs the evaluation; without metrics, only the mean loss since the last one."""
        state = self._state
        record: dict[str, Any] = {"kind": "epoch", "epoch": state.epoch, "update": state.update}
        record["train_loss"] = finite(state.means["epoch_loss"].value)
        if evaluation is None or not evaluation.metrics:
            self.journal.write(record, {})
            return
        of_best = "" if state.best_value is None else f", best {state.best_value:.3f}"
        log.info(f"{title}: {evaluation.line}{of_best}", extra=SUMMARY)
        refuse_reserved(evaluation.metrics)
        scalars = evaluation.metrics if evaluation.scalars is None else evaluation.scalars
        self.journal.write(
            {**record, "kind": "val"} | {name: finite(value) for name, value in evaluation.metrics.items()},
            {f"val/{name}": value for name, value in scalars.items()},
        )

    def _save(self, name: str, best: bool = False) -> bool:
        """Saves a checkpoint, unless the weights are not finite; returns whether it did. A collective operation."""
        state = self._state
        check_weights(state.model, self._world, self._position())
        if state.skipped_in_row and not weights_are_finite(state.model, self._world):
            log.warning("not saved after update %d: the weights are not finite", state.update)
            return False
        self._watch_folder()
        if self._world.is_main:
            self._saver.finish()  # before allocating more memory
        stored = self._stored if state.evaluated_at == state.update else {}
        contents = {**self._provenance.as_dict(), **stored, **state.state_dict()}
        if self._world.is_main:
            with self.progress.pause():
                self.journal.flush()
                self._saver.save(name, contents, best)
        self._saved_at = time.monotonic()
        return True

    def _position(self) -> str:
        return f"epoch {self._state.epoch}, update {self._state.update}"

    def _tick(self) -> None:
        self._world.tick(self._position())


def _script(name: str) -> str:
    """Returns the path of one of this program's scripts, relative to the working directory."""
    return quoted(os.path.relpath(Path(__file__).resolve().parents[2] / name))
