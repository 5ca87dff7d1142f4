"""When checkpoints are saved, what is recorded at the end of an epoch, and how a run ends early."""

import errno
import json
import logging
import math
import os
import shlex
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import utils.runs.session as session_module
from configs.loading import load_config
from tasks.classification.metrics import Accuracy
from tests.conftest import ROOT
from tests.tools.builders import (
    CPU,
    Subject,
    batches,
    objective,
    plan,
    session,
    shape,
    small,
    train_state,
)
from tests.tools.errors import raises
from utils.checkpoints.files import find_newest, follow
from utils.distributed.signals import Interrupt
from utils.distributed.world import World
from utils.errors import NumericsError, ResourceError, TerminatedError
from utils.precision import choose_precision
from utils.runs.session_options import SessionOptions
from utils.training.loop import train_epoch
from utils.training.objective import Evaluation


@pytest.fixture(autouse=True)
def own_handlers():
    """Signals go to pytest again."""
    signals = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for each, handler in signals.items():
        signal.signal(each, handler)


def judged(top1, loss=1.0):
    """An objective whose evaluation has this outcome."""
    result = Accuracy(top1, 90.0, loss, 5, 1, 9, 10)
    return SimpleNamespace(evaluate=lambda model: Evaluation(result.as_dict(5), result.line(5)))


def train(run_session, run_state, run_plan, work=None, after=lambda: None):
    """One epoch. Args: after: called after every update."""

    def after_update(update):
        after()
        run_session.after_update(update)

    train_epoch(run_state, run_session.watch(work or batches(10)), objective(), run_plan, after_update)


def saved(folder):
    """The names of the checkpoints."""
    return sorted(p.name for p in (folder / "checkpoints").glob("ckpt*.pth") if not p.is_symlink())


def test_saving_by_time_does_not_wait_for_log_lines(tmp_path, monkeypatch):
    """A clock that moves three seconds an update; a save every twelve."""
    run_state, run_plan, now = train_state(small()), plan(shape(80)), [0.0]
    monkeypatch.setattr(session_module.time, "monotonic", lambda: now[0])
    with session(tmp_path, run_state, run_plan, print_freq=100, save_minutes=0.2) as run_session:
        train(run_session, run_state, run_plan, batches(11), after=lambda: now.__setitem__(0, now[0] + 3))
    assert saved(tmp_path) == ["ckpt_epoch_0_step_4.pth", "ckpt_epoch_0_step_8.pth"]


def test_saved_epochs(tmp_path):
    """Every second epoch, and every epoch that is the best so far."""
    run_state, run_plan = train_state(small()), plan(epochs=5)
    with session(tmp_path, run_state, run_plan, save_freq=2) as run_session:
        for top1 in (50.0, 40.0, 30.0, 20.0, 60.0):
            run_session.end_epoch(judged(top1))
    assert saved(tmp_path) == [f"ckpt_epoch_{epoch}.pth" for epoch in (0, 1, 3, 4)]
    assert (tmp_path / "checkpoints/best.pth").readlink().name == "ckpt_epoch_4.pth"
    assert follow(tmp_path / "checkpoints/last.pth").resolve().name == "ckpt_epoch_4.pth"


def test_the_newest_are_kept(tmp_path):
    run_state, run_plan = train_state(small()), plan()
    with session(tmp_path, run_state, run_plan, save_updates=2, keep=2) as run_session:
        train(run_session, run_state, run_plan)
        run_session.end_epoch(judged(10.0))
    assert saved(tmp_path) == ["ckpt_epoch_0.pth", "ckpt_epoch_0_step_8.pth"]


def test_values_that_are_not_finite_are_written_as_null(tmp_path):
    with session(tmp_path, train_state(small()), plan()) as run_session:
        run_session.end_epoch(judged(10.0, float("nan")))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert record["loss"] is None and record["train_loss"] is None


def test_a_run_ends_with_a_line_and_a_folder_that_is_free(tmp_path, caplog):
    run_state = train_state(small())
    with caplog.at_level(logging.INFO), session(tmp_path, run_state, plan()) as run_session:
        assert (tmp_path / "owner.json").exists()
        train(run_session, run_state, plan())
        run_session.end_epoch(judged(50.0))
    folder = tmp_path / "checkpoints"
    assert "trained 1 epoch in 0:0" in caplog.text and "predict" not in caplog.text  # it has no classes
    assert f"best      {folder}/best.pth: top1 50.000 of epoch 0" in caplog.text
    assert f"main.py --eval --resume {folder}/best.pth" in caplog.text
    assert not (tmp_path / "owner.json").exists()


@pytest.mark.parametrize("predicts", [True, False])
def test_predict_py_is_named_where_it_can_be_used(tmp_path, caplog, predicts):
    run_state, subject = train_state(small()), Subject(predicts=predicts)
    with caplog.at_level(logging.INFO), session(tmp_path, run_state, plan(), subject=subject) as run_session:
        train(run_session, run_state, plan())
        run_session.end_epoch(judged(50.0))
    assert (f"predict.py IMAGE --model {tmp_path}" in caplog.text) == predicts


def test_evaluations_and_the_length_of_a_run_can_be_stated_in_updates(tmp_path):
    """14 updates of epochs of ten, an evaluation every four: within an epoch, and at the end."""
    run_state, run_plan = train_state(small()), plan(updates=14, eval_every=4, warmup_updates=1)
    subject, results = Subject(), iter([50.0, 70.0, 60.0, 40.0])
    subject.evaluate = lambda model: judged(next(results)).evaluate(model)
    assert [run_plan.updates_in(epoch) for epoch in range(run_plan.epochs)] == [10, 4]
    with session(tmp_path, run_state, run_plan, subject=subject) as run_session:
        while not run_state.finished(run_plan):
            train(run_session, run_state, run_plan, batches(run_plan.updates_in(run_state.epoch)))
            run_session.end_epoch()
    assert (run_state.epoch, run_state.step, run_state.update) == (1, 4, 14)  # a longer run continues from here
    assert (run_state.best_epoch, run_state.best_step) == (0, 8)
    longer = plan(updates=25, eval_every=4, warmup_updates=1)
    assert not run_state.finished(longer) and run_state.done(longer) == 14
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    vals = [(line["update"], line["epoch"], line["top1"]) for line in lines if line["kind"] == "val"]
    assert vals == [(4, 0, 50.0), (8, 0, 70.0), (12, 1, 60.0), (14, 1, 40.0)] and not list(results)
    assert saved(tmp_path) == [
        *("ckpt_epoch_0_step_4.pth", "ckpt_epoch_0_step_8.pth"),
        *("ckpt_epoch_1_step_2.pth", "ckpt_epoch_1_step_4.pth"),
    ]
    assert (tmp_path / "checkpoints/best.pth").readlink().name == "ckpt_epoch_0_step_8.pth"
    assert all(line["train_loss"] > 0 for line in lines if line["kind"] == "val")


def test_a_run_ends_when_evaluations_no_longer_improve(tmp_path, caplog):
    """Also after a resume: the count is part of the state."""
    run_state, run_plan, outcomes = train_state(small()), plan(epochs=9, patience=2, warmup_updates=1), [50, 60, 55, 58]
    with caplog.at_level(logging.INFO), session(tmp_path, run_state, run_plan, save_freq=5) as run_session:
        for top1 in outcomes:
            assert not run_state.finished(run_plan)
            run_session.end_epoch(judged(float(top1)))
    assert run_state.finished(run_plan) and run_state.epoch == 4
    assert (
        "stopping early: no improvement in 2 evaluations (TRAIN.PATIENCE)" in caplog.text
        and "best      " in caplog.text
    )
    contents = find_newest(tmp_path / "checkpoints")[1]  # saved, although no save was due
    other = train_state(small())
    other.load_state_dict(contents, lambda *_: "", "test")
    assert (other.stale, other.best_epoch) == (2, 1) and other.finished(run_plan)
    assert not other.finished(plan(epochs=9, patience=3, warmup_updates=1))
    other.reset_best()  # as with another dataset: nothing has failed to improve yet
    assert not other.finished(run_plan) and other.best_value is None


def test_a_run_may_end_within_an_epoch(tmp_path):
    run_state, run_plan = train_state(small()), plan(epochs=2, eval_every=3, patience=1, warmup_updates=1)
    subject, results = Subject(), iter([50.0, 40.0])
    subject.evaluate = lambda model: judged(next(results)).evaluate(model)
    with session(tmp_path, run_state, run_plan, subject=subject) as run_session:
        train(run_session, run_state, run_plan)
        run_session.end_epoch()
    assert (run_state.epoch, run_state.step, run_state.update) == (0, 6, 6) and run_state.finished(run_plan)
    assert saved(tmp_path) == ["ckpt_epoch_0_step_3.pth", "ckpt_epoch_0_step_6.pth"]


def test_a_plateau_schedule_counts_from_the_last_improvement_or_decay():
    run_state, run_plan = train_state(small()), plan(scheduler="plateau", plateau=2)
    found = []
    for improved in (True, False, False, False, True, False, False, False, False):
        run_state.judge(improved, run_plan)
        found.append(run_state.decays)
    assert found == [0, 0, 1, 1, 1, 1, 2, 2, 3]


def test_an_evaluation_within_an_epoch_that_was_stopped_is_repeated(tmp_path, interrupt):
    run_state, run_plan, subject = train_state(small()), plan(eval_every=4), Subject()

    def evaluate(model):
        for batch in interrupt.interruptible(range(5)):
            if batch == 1:
                signal.raise_signal(signal.SIGTERM)

    subject.evaluate = evaluate
    with (
        raises(TerminatedError, "SIGTERM", "update 4 is saved"),
        session(tmp_path, run_state, run_plan, interrupt=interrupt, subject=subject) as run_session,
    ):
        train(run_session, run_state, run_plan)
    contents = find_newest(tmp_path / "checkpoints")[1]
    other = train_state(small())
    other.load_state_dict(contents, lambda *_: "", "test")
    subject.evaluate = judged(80.0).evaluate
    with session(tmp_path, other, run_plan, subject=subject) as again:
        train(again, other, run_plan, batches(10)[4:])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if line["kind"] == "val"] == [4, 8] and other.best_value == 80.0


def test_a_repeated_evaluation_may_end_the_run(tmp_path, interrupt):
    run_state, run_plan, subject = train_state(small()), plan(epochs=9, eval_every=4, patience=1), Subject()

    def evaluate(model):
        if run_state.update == 4:
            return judged(80.0).evaluate(model)
        for batch in interrupt.interruptible(range(5)):
            if batch == 1:
                signal.raise_signal(signal.SIGTERM)
        return None

    subject.evaluate = evaluate
    with (
        raises(TerminatedError, "SIGTERM", "update 8 is saved"),
        session(tmp_path, run_state, run_plan, interrupt=interrupt, subject=subject) as run_session,
    ):
        train(run_session, run_state, run_plan)
    other = train_state(small())
    other.load_state_dict(find_newest(tmp_path / "checkpoints")[1], lambda *_: "", "test")
    subject.evaluate = judged(70.0).evaluate
    with session(tmp_path, other, run_plan, subject=subject) as again:
        train(again, other, run_plan, batches(10)[8:])
    assert other.finished(run_plan) and (other.update, other.best_value) == (8, 80.0)


def test_the_main_rank_decides_what_is_best(tmp_path, monkeypatch):
    """Another machine may round a metric differently; a rank that disagreed would not save with the others."""

    def main_only(world, produce):
        own = produce()
        return 90.0 if isinstance(own, float) else own

    monkeypatch.setattr(World, "main_only", main_only)
    run_state, run_plan, subject = train_state(small()), plan(epochs=1), Subject()
    subject.evaluate = judged(50.0).evaluate
    with session(tmp_path, run_state, run_plan, subject=subject) as run_session:
        train(run_session, run_state, run_plan)
        run_session.end_epoch()
    assert run_state.best_value == 90.0


def test_printed_commands_are_quoted_for_the_shell(tmp_path, caplog):
    folder = tmp_path / "x $(date)"
    folder.mkdir()
    run_state = train_state(small())
    subject = Subject(predicts=True)
    with caplog.at_level(logging.INFO), session(folder, run_state, plan(), subject=subject) as run_session:
        train(run_session, run_state, plan())
        run_session.end_epoch(judged(50.0))
    for option, value in (("--resume", f"{folder}/checkpoints/best.pth"), ("--model", str(folder))):
        (line,) = (r.getMessage() for r in caplog.records if option in r.getMessage())
        words = shlex.split(line)
        assert words[words.index(option) + 1] == value


def test_the_command_of_a_diverged_run_is_quoted(tmp_path):
    folder = tmp_path / "x $(date)"
    folder.mkdir()
    run_state, run_plan = train_state(small()), plan()
    with (
        pytest.raises(NumericsError) as caught,
        session(folder, run_state, run_plan, save_updates=2) as run_session,
    ):
        train(run_session, run_state, run_plan, [*batches(4), *poisoned(batches(5))])
    words = shlex.split(caught.value.remedy)
    assert words[words.index("--resume") + 1] == f"{folder}/checkpoints/ckpt_epoch_0_step_6.pth"


def test_files_that_a_run_did_not_write_are_not_named(tmp_path, caplog):
    """It resumed a finished one from elsewhere."""
    run_state = train_state(small())
    run_state.epoch, run_state.update = 2, 20
    with caplog.at_level(logging.INFO), session(tmp_path, run_state, plan()):
        pass
    assert "trained" not in caplog.text and "last.pth" not in caplog.text


def poisoned(work):
    return [replace(batch, images=batch.images * math.nan, samples=(i, i + 1)) for i, batch in enumerate(work)]


def test_fault_35_too_many_skipped_updates_end_the_run_and_say_how_to_go_on(tmp_path):
    run_state, run_plan = train_state(small()), plan()
    work = [*batches(4), *poisoned(batches(5))]
    newest = tmp_path / "checkpoints/ckpt_epoch_0_step_6.pth"
    remedy = f"--resume {newest} with a different --tag and --opts TRAIN.BASE_LR 0.05"
    names = ("3 consecutive", "is 6 at learning rate 0.000401", tmp_path / "incidents", remedy)
    with (
        raises(NumericsError, "TRAIN.BASE_LR", *names) as caught,
        session(tmp_path, run_state, run_plan, save_updates=2) as run_session,
    ):
        train(run_session, run_state, run_plan, work)
    assert "loss scale" not in caught.value.problem and "AMP_DTYPE" not in caught.value.remedy
    contents = find_newest(newest.parent)[1]  # the weights on disk are the last finite ones
    assert contents["counters"]["skipped"] == 2 and all(value.isfinite().all() for value in contents["model"].values())
    reports = [json.loads((tmp_path / f"incidents/update_{i}.json").read_text()) for i in (4, 5, 6)]
    assert [report["skipped_in_row"] for report in reports] == [1, 2, 3]
    assert reports[1]["ranks"] == [{"losses": {"loss": None}, "samples": ["photo_1", "photo_2"]}]
    assert reports[0]["grad_norm"] is None and {"patch_embed", "head"} <= reports[0]["grad_norms"].keys()
    assert not (tmp_path / "owner.json").exists()


def test_fault_35_a_report_names_the_epoch_also_where_changed_data_gave_epochs_another_length(tmp_path):
    run_state, run_plan = train_state(small()), plan(epochs=5)
    run_state.epoch, run_state.update = 3, 999  # epochs of 333 updates, now of ten
    with session(tmp_path, run_state, run_plan) as run_session:
        train(run_session, run_state, run_plan, [*batches(1), *poisoned(batches(1)), *batches(8)])
        run_session.end_epoch(judged(50.0))
    report = json.loads((tmp_path / "incidents/update_1000.json").read_text())
    assert (report["epoch"], report["step"]) == (3, 2)


def test_fault_35_without_a_checkpoint_the_run_starts_again_and_float16_is_doubted(tmp_path):
    run_state = train_state(small(), precision=choose_precision(CPU, True, "float16"))
    run_state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    names = ("learning rate 1e-06 and loss scale 256", "start again", "AMP_DTYPE bfloat16, or TRAIN.BASE_LR 0.05")
    with raises(NumericsError, "TRAIN.BASE_LR", *names), session(tmp_path, run_state, plan()) as run_session:
        train(run_session, run_state, plan(), poisoned(batches(5)))


def spoil(run_state, at):
    """Makes a weight NaN after the update `at`, as a fault of the memory would."""
    if run_state.update == at:
        run_state.model.head.weight.data[0, 0] = math.nan


def test_fault_35_weights_that_are_not_finite_are_not_saved(tmp_path, caplog):
    run_state = train_state(small())
    resume = f"--resume {tmp_path}/checkpoints/ckpt_epoch_0_step_4.pth"
    with (
        raises(NumericsError, "TRAIN.BASE_LR", resume),
        session(tmp_path, run_state, plan(), save_updates=2) as run_session,
    ):
        train(run_session, run_state, plan(), after=lambda: spoil(run_state, 5))
    assert saved(tmp_path) == ["ckpt_epoch_0_step_2.pth", "ckpt_epoch_0_step_4.pth"]
    assert "not saved after update 6: the weights are not finite" in caplog.text


@pytest.fixture
def interrupt():
    return Interrupt().install()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, TerminatedError), (signal.SIGINT, KeyboardInterrupt)], ids=["term", "int"]
)
def test_fault_23_a_signal_ends_the_run_after_the_update_with_its_state_on_disk(tmp_path, interrupt, number, error):
    run_state = train_state(small())
    text = r"the state after update 4 is saved \(run the same command again to resume\)"
    with pytest.raises(error, match=text), session(tmp_path, run_state, plan(), interrupt=interrupt) as run_session:
        train(run_session, run_state, plan(), after=lambda: run_state.update == 4 and signal.raise_signal(number))
    path, contents = find_newest(tmp_path / "checkpoints")
    assert path.name == "ckpt_epoch_0_step_4.pth" and contents["counters"]["update"] == 4
    assert not (tmp_path / "owner.json").exists()


def test_what_was_not_saved_is_not_called_saved(tmp_path, interrupt):
    run_state = train_state(small())

    def after():
        spoil(run_state, 5)
        if run_state.update == 6:
            signal.raise_signal(signal.SIGTERM)

    with (
        raises(TerminatedError, "SIGTERM", "update 6 was not saved"),
        session(tmp_path, run_state, plan(), interrupt=interrupt, save_updates=4) as run_session,
    ):
        train(run_session, run_state, plan(), after=after)
    assert saved(tmp_path) == ["ckpt_epoch_0_step_4.pth"]


def test_fault_24_a_checkpoint_on_request_and_the_run_goes_on(tmp_path, interrupt):
    run_state = train_state(small())
    with session(tmp_path, run_state, plan(), interrupt=interrupt) as run_session:
        train(
            run_session,
            run_state,
            plan(),
            after=lambda: run_state.update in (4, 10) and signal.raise_signal(signal.SIGUSR1),
        )
        assert run_state.update == 10
    assert saved(tmp_path) == ["ckpt_epoch_0_step_10.pth", "ckpt_epoch_0_step_4.pth"]


def test_fault_23_an_evaluation_that_was_cut_short_is_done_again(tmp_path, interrupt):
    """What it found so far is not recorded; the updates of the epoch are all saved."""
    run_state = train_state(small())

    def evaluate(model):
        for batch in interrupt.interruptible(range(5)):
            if batch == 1:
                signal.raise_signal(signal.SIGTERM)
        return judged(99.0).evaluate(model)

    with (
        raises(TerminatedError, "SIGTERM", "update 10 is saved"),
        session(tmp_path, run_state, plan(), interrupt=interrupt) as run_session,
    ):
        train(run_session, run_state, plan())
        run_session.end_epoch(SimpleNamespace(evaluate=evaluate))
    path, contents = find_newest(tmp_path / "checkpoints")
    assert path.name == "ckpt_epoch_0_step_10.pth" and contents["best"]["value"] is None
    assert not any(json.loads(line)["kind"] == "val" for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    other = train_state(small())
    other.load_state_dict(contents, lambda *_: "", "test")
    with session(tmp_path, other, plan()) as again:
        train(again, other, plan(), work=iter(()))
        again.end_epoch(judged(50.0))
    assert "ckpt_epoch_0.pth" in saved(tmp_path) and other.best_value == 50.0


def test_fault_15_a_save_that_failed_ends_the_run(tmp_path, monkeypatch):
    flush = os.fsync

    def full(descriptor):
        if "step_6" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    run_state = train_state(small())
    with (
        raises(ResourceError, tmp_path / "checkpoints/ckpt_epoch_0_step_6.pth", os.strerror(errno.ENOSPC)),
        session(tmp_path, run_state, plan(), save_updates=3) as run_session,
    ):
        train(run_session, run_state, plan())
    assert saved(tmp_path) == ["ckpt_epoch_0_step_3.pth"] and 6 <= run_state.update <= 9
    assert find_newest(tmp_path / "checkpoints")[1]["counters"]["update"] == 3
    assert not list((tmp_path / "checkpoints").glob(".*")) and not (tmp_path / "owner.json").exists()


def test_an_error_of_the_run_is_not_replaced_and_the_last_checkpoint_is_whole(tmp_path):
    run_state = train_state(small())
    with (
        pytest.raises(ZeroDivisionError),
        session(tmp_path, run_state, plan(), save_updates=3) as run_session,
    ):
        train(run_session, run_state, plan(), after=lambda: run_state.update == 4 and 1 / 0)
    assert saved(tmp_path) == ["ckpt_epoch_0_step_3.pth"]
    assert find_newest(tmp_path / "checkpoints") and not (tmp_path / "owner.json").exists()


def test_fault_16_a_disk_without_room_for_the_checkpoints_is_refused(tmp_path, monkeypatch):
    real = os.statvfs("/")
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*real[:1], 4096, 1000, 99, 3, *real[5:])))
    with raises(ResourceError, tmp_path / "checkpoints", "0 MiB are free"):
        session(tmp_path, train_state(small()), plan()).__enter__()


def test_the_watchdog_hears_of_every_update_and_waits_for_the_last_save(tmp_path):
    ticks = []
    watchdog = SimpleNamespace(tick=ticks.append, before_exit=None, stop=lambda: None)
    run_state = train_state(small())
    with session(tmp_path, run_state, plan(), world=World(watchdog=watchdog), save_updates=8) as run_session:
        train(run_session, run_state, plan())
        watchdog.before_exit()
        assert saved(tmp_path) == ["ckpt_epoch_0_step_8.pth"]
    assert ticks == [f"epoch 0, update {update}" for update in range(11)]


def test_options_come_from_the_configuration():
    given = {"PRINT_FREQ": 3, "SAVE_FREQ": 4, "TRAIN.SAVE_EVERY_UPDATES": 5, "TRAIN.KEEP_CHECKPOINTS": 7}
    overrides = [(name, value, "test") for name, value in given.items()]
    cfg = load_config(ROOT / "configs/swin_tiny.yaml", overrides)
    assert SessionOptions.from_config(cfg) == SessionOptions(3, 4, 5, 15.0, 7)


def test_fault_63_a_folder_that_is_moved_ends_the_run_with_the_state_in_its_new_place(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    run_state, run_plan = train_state(small()), plan()
    move = iter([None, None, None, lambda: before.rename(after)])
    with (
        raises(ResourceError, before, after, "update 5", "move it back"),
        session(before, run_state, run_plan) as run_session,
    ):
        train(run_session, run_state, run_plan, after=lambda: (next(move, None) or (lambda: None))())
    assert not before.exists() and not (after / "owner.json").exists()
    assert find_newest(after / "checkpoints")[1]["counters"]["update"] == 5
    assert [json.loads(line)["update"] for line in (after / "metrics.jsonl").read_text().splitlines()] == [5]
    assert list((after / "tensorboard").iterdir())


def test_fault_63_a_folder_that_is_moved_in_the_last_evaluation_holds_the_whole_run(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    run_state, run_plan = train_state(small()), plan(epochs=1)
    with raises(ResourceError, before, after, "complete"), session(before, run_state, run_plan) as run_session:
        train(run_session, run_state, run_plan)
        before.rename(after)
        run_session.end_epoch(judged(50.0))
    assert not before.exists() and saved(after) == ["ckpt_epoch_0.pth"]


def test_fault_63_a_folder_that_is_removed_ends_the_run_and_is_not_made_anew(tmp_path):
    folder, run_state, run_plan = tmp_path / "run", train_state(small()), plan()
    with raises(ResourceError, folder, "removed"), session(folder, run_state, run_plan) as run_session:
        shutil.rmtree(folder)
        train(run_session, run_state, run_plan)
    assert run_state.update == 5 and not folder.exists()
