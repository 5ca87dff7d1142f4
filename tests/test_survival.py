"""Signals, kills, hangs and disks of two ranks, injected by tests/tools/inject.py; nothing may be lost.

The ranks are started as torchrun would, but each in a working folder of its own: relative paths lead to different
disks, as on machines that share none.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, environment, free_port, only_error, rank_variables, starter
from tests.tools import soak
from tests.tools.builders import AUGMENTED, loading, open_folder, pipeline, write_photos
from tests.tools.soak import compare, leftovers

RECIPE = """
DATA: {IMG_SIZE: 32, BATCH_SIZE: 2, NUM_WORKERS: 0}
MODEL:
  NAME: soak
  DROP_PATH_RATE: 0.2
  SWIN: {PATCH_SIZE: 2, EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4], WINDOW_SIZE: 4}
TRAIN: {EPOCHS: 2, WARMUP_EPOCHS: 1, BASE_LR: 0.05, EMA: {ENABLE: true, DECAY: 0.9}}
PRINT_FREQ: 3
"""
RUN = Path("output/soak/default")
WORKERS = ["--opts", "DATA.NUM_WORKERS", 1]  # any number gives the same bits
INJECT = ROOT / "tests/tools/inject.py"


@dataclass
class Ranks:
    """Ranks of one job that run."""

    jobs: list[Any]  # of Popen, or with its methods (tests/tools/warm.py)

    def wait(self, timeout: float = 90) -> "Ended":
        results = []
        for job in self.jobs:
            out, err = job.communicate(timeout=timeout)
            results.append((job.returncode, out, err))
        codes, outs, errs = (list(column) for column in zip(*results, strict=True))
        return Ended(codes, "".join(outs), "".join(errs))

    def kill(self) -> None:
        for job in self.jobs:
            job.send_signal(signal.SIGKILL)  # if it still runs


@dataclass(frozen=True)
class Ended:
    """What the ranks of a job ended with."""

    codes: list[int]
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only error line of the job."""
        return only_error(self.err)


def start(folders: list[Path], *options: object, faults: str = "", fresh: bool = False, **env: str) -> Ranks:
    """Starts one rank in each folder; `fresh`: in a new Python, with its output in pipes."""
    arguments = [faults, "--cfg", "recipe.yaml", "--data-path", "data", *map(str, options)]
    port, jobs, pipe = free_port(), [], subprocess.PIPE
    for rank, folder in enumerate(folders):
        variables = environment(**rank_variables(rank, len(folders), port), SWIN_SOAK=str(folders[0]), **env)
        if fresh:
            line = [sys.executable, str(INJECT), *arguments]
            jobs.append(subprocess.Popen(line, cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True))
        else:
            jobs.append(starter.start(INJECT, arguments, folder, variables))
    return Ranks(jobs)


def torchrun(folder: Path, *options: object, faults: str = "", restarts: int = 0) -> subprocess.Popen:
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = ["--max-restarts", str(restarts), str(INJECT), faults]
    arguments = ["--cfg", "recipe.yaml", "--data-path", "data", *map(str, options)]
    return subprocess.Popen(
        [*head, *program, *arguments],
        cwd=folder,
        env=environment(SWIN_SOAK=str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def make_folder(folder: Path, photos: Path) -> Path:
    """A working folder with data and recipe."""
    folder.mkdir()
    (folder / "data").symlink_to(photos)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def disks(tmp_path, photos) -> list[Path]:
    """The working folders of two ranks."""
    return [make_folder(tmp_path / f"rank{rank}", photos) for rank in (0, 1)]


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory) -> Path:
    """The output folder of a run of two ranks that was left alone: 2 epochs of 9 updates."""
    folder = make_folder(tmp_path_factory.mktemp("alone") / "both", photos)
    ended = start([folder, folder]).wait()
    assert ended.codes == [0, 0], ended.err
    return folder / RUN


def wait_for(path: Path, text: str, job: Any) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or text not in path.read_text():
        assert job.poll() is None and time.monotonic() < deadline, path
        time.sleep(0.02)


def assert_nothing_left(folder: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while left := leftovers(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.slow
def test_fault_23_sigterm_saves_and_the_run_continues_bit_equal(disks, undisturbed):
    """To one rank in an update, in an evaluation, in a save; then to the launcher. Rank 1 never sees a checkpoint."""
    in_a_save = "step:3:usr1:1,save:5:hup:0"
    for faults, earliest, latest in (("step:4:hup:1", 4, 7), ("evaluation:1:term:1", 9, 9), (in_a_save, 10, 15)):
        ended = start(disks, faults=faults).wait()
        assert ended.codes == [75, 75], ended.err
        name = "SIGTERM" if "term" in faults else "SIGHUP"
        assert ended.error.startswith(f"error: {name}: terminated; the state after update"), ended.err
        stopped = int(re.search(r"after update (\d+)", ended.error)[1])
        assert earliest <= stopped <= latest  # the ranks agree first
        assert max(int(line["update"]) for line in records(disks[0] / RUN)) <= stopped
        assert not (disks[1] / "output").exists()
    stopped_by(signal.SIGTERM, disks[0], "[1/2][6/9]")
    assert start(disks).wait().codes == [0, 0]
    assert compare(undisturbed, disks[0] / RUN) == ""
    assert not (disks[0] / RUN / "owner.json").exists()


def stopped_by(number: signal.Signals, folder: Path, place: str) -> None:
    """Sends a signal to torchrun at a place of the log: the run must save, end in one line, and leave nothing."""
    slow = torchrun(folder, *WORKERS, faults="step:1:sleep=0.2")
    wait_for(folder / RUN / "log.txt", place, slow)
    begun = time.monotonic()
    slow.send_signal(number)
    _, err = slow.communicate(timeout=60)
    assert time.monotonic() - begun < 20 and f"error: {number.name}: terminated; the state after update" in err, err
    assert "DataLoader worker" not in err and "leaked" not in err
    assert_nothing_left(folder)


@pytest.mark.slow
def test_fault_23_a_terminal_that_is_closed_stops_the_run(disks):
    stopped_by(signal.SIGHUP, disks[0], "[0/2][3/9]")
    assert (disks[0] / RUN / "checkpoints/last.pth").exists()


@pytest.mark.slow
def test_a_mistake_is_reported_although_another_rank_finds_it_first(disks):
    """torchrun ends all ranks when the first has failed; its report quotes the error of that one."""
    job = torchrun(disks[0], "--tga", "x", faults="imports:0:sleep=4:0")
    _, err = job.communicate(timeout=60)
    assert job.returncode == 1 and "did you mean --tag" in only_error(err)
    last = [line for line in err.splitlines() if line.strip("=-_ ")][-1]
    assert last.endswith(only_error(err))


def test_fault_23_a_rank_that_waits_for_the_others_hears_a_signal(disks):
    """Rank 0 hosts the store and waits in native code, where Python runs no handlers."""
    port = free_port()
    variables = environment(**rank_variables(0, 2, port), SWIN_SOAK=str(disks[0]))
    job = starter.start(INJECT, ["", "--cfg", "recipe.yaml", "--data-path", "data"], disks[0], variables)
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("localhost", port)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)  # it has begun to wait
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 75 and only_error(job.output()[1]).startswith("error: SIGTERM: terminated")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_fault_24_sigusr1_saves_and_the_run_goes_on(disks, undisturbed):
    ended = start(disks, faults="step:4:usr1:1").wait()
    assert ended.codes == [0, 0]
    assert re.search(r"saved .*ckpt_epoch_0_step_[4-7]\.pth", ended.out)  # the ranks agree first
    assert compare(undisturbed, disks[0] / RUN) == ""


def test_a_newer_checkpoint_on_another_machine_is_not_trained_again(disks):
    """A launcher may number the ranks anew; the run must not start over on the machine that has rank 0 now.

    Rank 1 does not end before rank 0 has saved and drawn the curves, although that takes long.
    """
    assert start(disks, faults="step:3:term:1,snapshot:0:sleep=3:0,draw:0:sleep=3:0").wait().codes == [75, 75]
    assert (disks[0] / RUN / "curves.png").exists() and not (disks[0] / RUN / "owner.json").exists()
    ended = start(disks[::-1]).wait()
    assert ended.codes == [4, 4] and ended.error.startswith(f"error: {RUN}/checkpoints/ckpt_epoch_0_step_")


@pytest.mark.slow
def test_two_launchers_without_a_common_disk_bring_a_run_back(disks, undisturbed):
    head = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{free_port()}", "--max-restarts", "2"]
    program = [str(INJECT), "step:12+0:kill:1", "--cfg", "recipe.yaml", "--data-path", "data"]
    env = environment(SWIN_SOAK=str(disks[0]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    agents = [subprocess.Popen([*head, *meeting, *program], cwd=disk, env=env, **pipes) for disk in disks]
    errs = [agent.communicate(timeout=150)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], errs
    assert "injected kill" in "".join(errs) and "error: rank 1: " in "".join(errs)
    ended = [disk for disk in disks if (disk / RUN).exists()]
    assert len(ended) == 1 and compare(undisturbed, ended[0] / RUN) == ""


@pytest.mark.slow
def test_fault_26_a_killed_rank_is_named_and_torchrun_restarts_the_job(disks, undisturbed):
    faults = "step:4+0:kill:1,evaluation:1+1:raise:1"
    job = torchrun(disks[0], "--opts", "TRAIN.SAVE_EVERY_UPDATES", 3, faults=faults, restarts=2)
    _, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert err.count("injected kill") == err.count("injected raise") == 1
    killed = [line for line in err.splitlines() if line.startswith("error: rank 1: ") and "disappeared at" in line]
    assert len(killed) == 1 and "epoch 0, update" in killed[0]
    assert "leaked" not in err
    assert compare(undisturbed, disks[0] / RUN) == ""
    assert_nothing_left(disks[0])


def test_fault_26_the_other_ranks_end_with_5(disks):
    job = start(disks, *WORKERS, faults="step:4:kill:1")
    ended = job.wait()
    assert ended.codes == [5, -signal.SIGKILL]
    assert ended.error.startswith("error: rank 1: ") and "at epoch 0" in ended.error
    assert f"{socket.gethostname()}, process {job.jobs[1].pid}" in ended.error
    assert_nothing_left(disks[0])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["imports:1:kill=launcher:1", "step:4:kill=launcher:0"])
def test_fault_61_ranks_end_with_torchrun_and_one_line(disks, fault):
    """The pipes are closed when the last of them has ended."""
    job = torchrun(disks[0], faults=fault)
    out, err = job.communicate(timeout=120)
    assert job.returncode == -signal.SIGKILL
    # a rank that starts after the kill finds nobody at the address
    lines = (f"error: torchrun: it was killed: process {job.pid}", "error: torchrun: it does not respond")
    assert only_error(err).startswith(lines if "imports" in fault else lines[0]), err
    assert "Traceback" not in err and "done" not in out
    assert_nothing_left(disks[0])


def test_fault_63_a_folder_that_is_moved_ends_both_ranks_and_comes_back(disks, undisturbed):
    """A move at any time; nothing of it is lost."""
    folder, moved = disks[0] / RUN, disks[0] / "elsewhere"
    job = start(disks, faults="step:2:sleep=0.2")
    wait_for(folder / "log.txt", "[0/2][3/9]", job.jobs[0])
    folder.rename(moved)
    ended = job.wait()
    assert ended.codes == [7, 7], ended.err
    assert ended.error.startswith(f"error: {RUN}: was moved to {moved} ") and "the state after update" in ended.error
    assert not folder.exists()
    moved.rename(folder)
    assert start(disks).wait().codes == [0, 0]
    assert compare(undisturbed, folder) == ""


def test_fault_27_a_rank_that_hangs_is_named_with_the_stacks_of_the_others(disks):
    job = start(disks, "--opts", "TIMEOUT_MINUTES", 0.25, faults="step:4:stop:1")
    _, err = job.jobs[0].communicate(timeout=60)
    job.kill()
    assert job.jobs[0].returncode == 5
    lines = err.splitlines()
    assert any("in train_epoch" in line for line in lines)  # where rank 0 waits
    assert any(line.startswith("rank 1 (") and line.endswith("does not respond") for line in lines)
    assert lines[-1].startswith("error: TIMEOUT_MINUTES: no progress for 15 seconds at epoch 0, update")
    assert "rank 1 (" in lines[-1]
    job.jobs[1].communicate()
    assert_nothing_left(disks[0])


def test_fault_22_a_failed_save_of_the_main_rank_ends_all(disks):
    begun = time.monotonic()
    ended = start(disks, "--opts", "TRAIN.SAVE_EVERY_UPDATES", 3, faults="replace:5:full:0").wait()
    assert ended.codes == [7, 7] and time.monotonic() - begun < 60
    assert ended.error.startswith(f"error: {RUN}/checkpoints/ckpt_epoch_0_step_6.pth: ")
    assert "No space left on device" in ended.error and "checkpoints are intact" in ended.error
    kept = sorted(path.name for path in (disks[0] / RUN / "checkpoints").iterdir())
    assert kept == ["ckpt_epoch_0_step_3.pth", "ckpt_epoch_0_step_3.pth.sha256", "last.pth"]
    assert start(disks).wait().codes == [0, 0]


def test_fault_33_ranks_that_diverge_are_noticed_at_the_next_save(disks):
    ended = start(disks, "--opts", "TRAIN.SAVE_EVERY_UPDATES", 6, faults="step:4:change:1").wait()
    assert ended.codes == [5, 5]
    assert ended.error.startswith("error: rank 1: ")
    assert "rank 0 at epoch 0, update 6" in ended.error and "patch_embed" in ended.error
    assert not list((disks[0] / RUN / "checkpoints").iterdir())


def test_fault_35_the_last_line_says_how_to_go_on_and_it_works(disks):
    folder, options = disks[0], ["--opts", "TRAIN.MAX_SKIPPED_UPDATES", 3, "TRAIN.SAVE_EVERY_UPDATES", 4]
    ended = start([folder], *options, faults="step:6:nan").wait()
    assert ended.codes == [6]
    newest = RUN / "checkpoints/ckpt_epoch_0_step_4.pth"
    assert ended.error.startswith("error: TRAIN.BASE_LR: ")
    assert f"continue from --resume {newest}" in ended.error and "--opts TRAIN.BASE_LR 0.025" in ended.error
    reports = [json.loads(path.read_text()) for path in sorted((folder / RUN / "incidents").iterdir())]
    assert [report["update"] for report in reports] == [6, 7, 8]
    assert len(reports[0]["ranks"][0]["samples"]) == 2 and "photo_" in reports[0]["ranks"][0]["samples"][0]
    assert reports[0]["learning_rate"] > 0 and reports[0]["grad_norms"].keys() >= {"patch_embed", "layers.0", "head"}
    again = start([folder], "--resume", newest, "--tag", "lower", "--opts", "TRAIN.BASE_LR", 0.025).wait()
    assert again.codes == [0], again.err


def test_ranks_that_see_other_data_or_another_configuration_are_refused(disks):
    data = disks[1] / "data"
    photos = data.resolve()
    data.unlink()
    shutil.copytree(photos, data)
    next((data / "train/class_1").iterdir()).unlink()
    ended = start(disks, XDG_CACHE_HOME="cache").wait()
    assert ended.codes == [5, 5]
    assert ended.error.startswith("error: DATA.DATA_PATH: ")
    assert "35 training samples" in ended.error and "36 training samples" in ended.error
    (disks[1] / "recipe.yaml").write_text(RECIPE.replace("0.05", "0.06"))
    ended = start(disks).wait()
    assert ended.codes == [5, 5]
    assert ended.error.startswith("error: TRAIN.BASE_LR: ") and "0.06 on rank 1" in ended.error
    assert not (disks[0] / "output").exists()


def test_fault_09_a_second_run_in_the_folder_is_refused_and_a_dead_one_replaced(disks):
    folder = disks[0]
    first = start([folder], faults="step:2:sleep=0.3")
    wait_for(folder / RUN / "log.txt", "[0/2][3/", first.jobs[0])
    second = start([folder]).wait()
    assert second.codes == [2]
    assert second.error.startswith(f"error: {RUN}: ") and f"process {first.jobs[0].pid}" in second.error
    assert first.jobs[0].poll() is None
    first.kill()
    first.jobs[0].communicate()
    third = start([folder]).wait()
    assert third.codes == [0] and len({line["update"] for line in records(folder / RUN)}) == len(
        [line for line in records(folder / RUN) if line["kind"] == "train"]
    )


@pytest.mark.slow
def test_fault_32_two_ranks_one_and_two_again(disks):
    """Mixing and stochastic depth are drawn by rank and micro-batch: without them the losses are the same."""
    exact = ["--disable_amp", "--opts", "MODEL.DROP_PATH_RATE", 0, "AUG.MIXUP", 0, "AUG.CUTMIX", 0]
    exact += ["TRAIN.GLOBAL_BATCH_SIZE", 4]
    folder, whole = disks
    assert start([folder, folder], *exact, faults="step:4:term:1").wait().codes == [75, 75]
    assert start([folder], *exact, faults="step:6:term").wait().codes == [75]
    assert start([folder, folder], *exact).wait().codes == [0, 0]
    assert start([whole, whole], *exact).wait().codes == [0, 0]
    for one, other in zip(records(folder / RUN), records(whole / RUN), strict=True):
        assert (one["update"], one.get("lr"), one.get("samples")) == (
            other["update"],
            other.get("lr"),
            other.get("samples"),
        )
        loss = "loss" if one["kind"] == "train" else "train_loss"
        assert one[loss] == pytest.approx(other[loss], rel=1e-5)


def test_fault_32_the_pixels_of_every_update_are_the_same_for_every_number_of_ranks(photos):
    from hashlib import sha256

    from data.loaders import TrainLoader
    from utils.batches import EpochShape
    from utils.distributed.world import World

    source = open_folder(photos).train
    digests = []
    for ranks, batch, accumulation in ((1, 8, 1), (2, 4, 1), (1, 4, 2), (4, 1, 2)):
        shape = EpochShape(len(source), batch, accumulation, ranks)
        updates: dict[int, list[bytes]] = {}
        parts = []
        for rank in range(ranks):
            loader = TrainLoader(source, pipeline(AUGMENTED), loading(batch_size=batch), shape, World(rank, ranks))
            parts.append([[image.numpy().tobytes() for image in micro.images] for micro in loader.epoch(1)])
        for micro in range(len(parts[0])):
            updates.setdefault(micro // accumulation, []).extend(image for part in parts for image in part[micro])
        digests.append([sha256(b"".join(images)).hexdigest() for images in updates.values()])
    assert all(each == digests[0] for each in digests) and len(set(digests[0])) == 5


def test_a_reader_that_goes_away_and_a_plain_locale_disturb_nothing(disks, tmp_path):
    """main.py ... | head -1, into a folder with a name that the locale cannot show."""
    folder = disks[0]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    options = "--output größe --opts TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 PRINT_FREQ 1".split()
    job = start([folder], *options, fresh=True, **plain).jobs[0]
    assert "data: 36 training" in job.stdout.readline()
    job.stdout.close()
    err = job.stderr.read()
    assert job.wait() == 0 and err == ""
    assert "trained 1 epoch in" in (folder / "größe/soak/default/log.txt").read_text()


def test_closed_standard_streams_disturb_nothing(disks):
    arguments = "--cfg recipe.yaml --data-path data --opts TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0"
    line = f"{sys.executable} {ROOT / 'main.py'} {arguments} >&- 2>&-"
    assert subprocess.run(line, shell=True, cwd=disks[0], env=environment()).returncode == 0


@pytest.mark.parametrize("seconds", [0, 1.5])
def test_fault_25_ctrl_c_during_the_imports_ends_with_one_line(disks, seconds):
    job = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "--cfg", "recipe.yaml", "--data-path", "data"],
        cwd=disks[0],
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    status = Path(f"/proc/{job.pid}/status")
    while not catches(signal.SIGTERM, status.read_text()):  # Python itself has started
        time.sleep(0.01)
    time.sleep(seconds)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=30)
    assert (job.returncode, err) == (130, "error: interrupted\n")


def catches(number: int, status: str) -> bool:
    """Whether a process has a handler for a signal, by its status in /proc."""
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


# a smaller model, and no loader workers: their server imports torch
SOAK = """
BASE: [{root}/configs/quickstart.yaml]
DATA: {{BATCH_SIZE: 3, NUM_WORKERS: 0}}
MODEL: {{NAME: soak, DROP_PATH_RATE: 0.2, SWIN: {{EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4]}}}}
TRAIN:
  EPOCHS: {epochs}
  WARMUP_EPOCHS: {warmup}
  GLOBAL_BATCH_SIZE: 12
  SAVE_EVERY_UPDATES: 4
  CLIP_GRAD: 1.0
  EMA: {{ENABLE: true, DECAY: 0.9}}
AUG: {{AUTO_AUGMENT: rand-m9-mstd0.5-inc1, REPROB: 0.25, MIXUP: 0.8, CUTMIX: 1.0}}
PRINT_FREQ: 4
"""


@pytest.mark.slow
def test_soak(monkeypatch, tmp_path, capsys):
    """Five kills, one in each phase, of a small run; tests/tools/soak.py runs more, with launchers and workers."""

    def run(folder: Path, recipe: Path, output: Path, processes: int, faults: str = "") -> soak.Outcome:
        assert processes == 1
        job = starter.start(INJECT, [faults, *soak.arguments(folder, recipe, output)], ROOT, environment())
        out, err = job.communicate()
        return soak.Outcome(job.returncode, out + err)

    monkeypatch.setattr(soak, "run", run)
    monkeypatch.setattr(soak, "TARGETS", dict.fromkeys(soak.PHASES, ("rank",)))
    monkeypatch.setattr(soak, "PHASES", (*soak.PHASES[:5], "rendezvous"))
    monkeypatch.setattr(soak, "write_digits", partial(write_photos, classes=3, train=64, val=16, size=32))
    monkeypatch.setattr(soak, "RECIPE", SOAK)
    code = soak.main([*"--kills 5 --seed 4 --processes 1 --epochs 1 --folder".split(), str(tmp_path / "soak")])
    printed = capsys.readouterr().out
    assert code == 0 and printed.endswith("bit-equal\n") and printed.count(" kills, ") == 5, printed
