"""A run killed in the middle of an epoch and started again ends with the same bits as one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT, command, environment, run_program, start_ranks

# augmentation, mixing and stochastic depth come from the defaults
EVERYTHING = [
    "--opts",
    "TRAIN.EMA.ENABLE",
    True,
    "TRAIN.EMA.DECAY",
    0.9,
    "TRAIN.SAVE_EVERY_UPDATES",
    2,
    "PRINT_FREQ",
    3,
    "TRAIN.WARMUP_EPOCHS",
    1,
]


FSDP = ["TRAIN.PARALLEL", "fsdp", "TRAIN.USE_CHECKPOINT", True, "TRAIN.ACCUMULATION_STEPS", 2, "DATA.BATCH_SIZE", 2]
_MOE = {"PATCH_SIZE": 2, "EMBED_DIM": 16, "DEPTHS": [2, 2], "NUM_HEADS": [2, 4], "WINDOW_SIZE": 4}
_MOE |= {"MOE_BLOCKS": [[1], [1]], "NUM_EXPERTS": 4, "MOE_DROP": 0.1}
MOE = ["MODEL.TYPE", "swin_moe", *(word for key, value in _MOE.items() for word in (f"MODEL.SWIN_MOE.{key}", value))]
# from a table without splits, whose classes are drawn equally often
MULTILABEL = ["TASK", "multilabel", "DATA.SAMPLER", "balanced", "LOSS.POSITIVE_WEIGHTS", 5, "DATA.SPLIT", 0.3]
SIMMIM = ["TASK", "simmim", "DATA.MASK_PATCH_SIZE", 8]


def arguments(tiny_yaml: Path, photos: Path, output: Path, workers: int) -> list:
    return ["--cfg", tiny_yaml, "--data-path", photos, "--output", output, *EVERYTHING, "DATA.NUM_WORKERS", workers]


def run_until_killed(args: list, processes: int, folder: Path, line: str, fresh: bool) -> None:
    """Starts the program and kills all its processes (SIGKILL) as soon as the log in its output folder has `line`."""
    if fresh:
        jobs = [subprocess.Popen(command(*args, processes=processes), cwd=ROOT, env=environment())]
    else:
        jobs = start_ranks(*args, processes=processes)
    deadline = time.monotonic() + 120
    while not (folder / "log.txt").exists() or line not in (folder / "log.txt").read_text():
        assert not any(job.poll() for job in jobs) and time.monotonic() < deadline
        time.sleep(0.005)
    for pid in [pid for job in jobs for pid in (job.pid, *children(job.pid))]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for job in jobs:
        job.wait()


def children(pid: int) -> list[int]:
    """All processes below `pid`; torchrun gives each rank a session of its own, so killing a group is not enough."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def state(output: Path) -> dict:
    return torch.load(output / "tiny/default/checkpoints/last.pth", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "workers", "more"),
    [(1, 2, []), (2, 0, []), (2, 0, SIMMIM), (2, 0, FSDP), (2, 0, MOE), (1, 0, MULTILABEL), (2, 0, MULTILABEL)],
)
def test_a_killed_run_ends_bit_equal(tiny_yaml, photos, tmp_path, processes, workers, more):
    photos = as_table(photos, tmp_path) if more is MULTILABEL else photos
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    done = run_program(*arguments(tiny_yaml, photos, undisturbed, workers), *more, processes=processes)
    assert done.code == 0, done.err

    args = [*arguments(tiny_yaml, photos, killed, workers), *more]
    line = "[1/2][6/" if processes == 1 else "[1/2][3/"  # of 9 and 5 updates
    folder = killed / "tiny/default"
    run_until_killed(args, processes, folder, line, fresh=not more)
    assert len(list((folder / "metrics.jsonl").read_text().splitlines())) < len(
        (undisturbed / "tiny/default/metrics.jsonl").read_text().splitlines()
    )
    again = run_program(*args, processes=processes, fresh=not more)
    assert again.code == 0, again.err
    assert "the newest checkpoint in the output folder" in again.out and "epoch 1" in again.out

    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "tiny/default/metrics.jsonl").read_bytes()
    assert_same(state(undisturbed), state(killed))


def as_table(photos: Path, folder: Path) -> Path:
    """A table of 51 photographs with up to two labels each."""
    rows = []
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        labels = [path.parent.name] * (number % 7 > 0) + ["even"] * (number % 2 == 0)
        rows.append(f"{path},{'|'.join(labels)}\n")
    (folder / "labels.csv").write_text("".join(["path,labels\n", *rows]))
    return folder / "labels.csv"


def assert_same(a, b, path=""):
    """Equal to the last bit, all the way down; the configuration's text names the output folder, so it may differ."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key != "config":
                assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    else:
        assert a == b, path


def short(tiny_yaml: Path, photos: Path, output: Path) -> list:
    """Arguments of a run of one epoch."""
    return ["--cfg", tiny_yaml, "--data-path", photos, "--output", output, "--opts", "TRAIN.EPOCHS", 1]


@pytest.fixture(scope="module")
def one_epoch(tiny_yaml, photos, tmp_path_factory) -> Path:
    """What `short` leaves; read only."""
    output = tmp_path_factory.mktemp("short")
    assert run_program(*short(tiny_yaml, photos, output)).code == 0
    return output


@pytest.fixture
def finished(one_epoch, tmp_path) -> Path:
    """Puts a copy of `one_epoch` into the folder of the test."""
    return Path(shutil.copytree(one_epoch, tmp_path, symlinks=True, dirs_exist_ok=True))


def test_a_finished_run_started_again_has_nothing_to_do(tiny_yaml, photos, finished):
    args = short(tiny_yaml, photos, finished)
    metrics = (finished / "tiny/default/metrics.jsonl").read_bytes()
    again = run_program(*args)
    assert again.code == 0 and "Train:" not in again.out
    assert (finished / "tiny/default/metrics.jsonl").read_bytes() == metrics


def test_what_a_checkpoint_holds(tiny_yaml, photos, tmp_path):
    """docs/architecture.md lists it; the model has the original's names and nothing derived."""
    args = [
        "--cfg",
        tiny_yaml,
        "--data-path",
        photos,
        "--output",
        tmp_path,
        *EVERYTHING,
        "TRAIN.EPOCHS",
        1,
        "TRAIN.WARMUP_EPOCHS",
        0,
    ]
    done = run_program(*args)
    assert done.code == 0, done.err
    folder = tmp_path / "tiny/default"
    best = torch.load(folder / "checkpoints/best.pth", weights_only=True)
    documented = (ROOT / "docs/architecture.md").read_text()
    assert all(f"`{key}`" in documented for key in best), best.keys()
    names = set(best["model"])
    assert {"patch_embed.proj.weight", "layers.0.blocks.1.attn.relative_position_bias_table"} <= names
    assert {
        "layers.0.downsample.reduction.weight",
        "layers.1.blocks.0.mlp.fc1.bias",
        "norm.weight",
        "head.bias",
    } <= names
    assert not any(
        n.endswith(("relative_position_index", "attn_mask")) or n.startswith(("module.", "_orig_mod.")) for n in names
    )
    assert best["class_names"] == ["class_0", "class_1", "class_2"]
    assert best["counters"]["update"] == 9 and best["counters"]["samples"] == 36
    for name in ("config.yaml", "env.json", "log.txt", "metrics.jsonl", "curves.png"):
        assert (folder / name).stat().st_size > 0, name
    environment_ = json.loads((folder / "env.json").read_text())
    assert environment_["versions"]["torch"] == torch.__version__ and "main.py" in " ".join(environment_["command"])
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for tag, kind, key in (("train/loss", "train", "loss"), ("train/lr", "train", "lr"), ("val/top1", "val", "top1")):
        expected = [(r["update"], pytest.approx(r[key])) for r in lines if r["kind"] == kind]
        assert [(e.step, e.value) for e in board.Scalars(tag)] == expected
    assert {"train/grad_norm", "speed/images_per_s", "val/loss", "val/top1"} <= set(board.Tags()["scalars"])
    log = (folder / "log.txt").read_text()
    assert "data: 36 training and 15 validation samples, 3 classes" in log and "Acc@1" in log
    assert "\x1b" not in log  # plain text
    with Image.open(folder / "curves.png") as curves:
        assert curves.size[0] > 800 and len(curves.convert("L").getcolors()) > 10
    assert "trained 1 epoch in" in done.out and f"scripts/predict.py IMAGE --model {folder}" in done.out
    rerun = run_program("--cfg", folder / "config.yaml")
    assert "already trained: 1 epoch" in rerun.out
    assert rerun.code == 0 and "the newest checkpoint in the output folder" in rerun.out


def test_a_kill_between_a_save_and_its_links_is_mended(tiny_yaml, photos, finished):
    folder = finished / "tiny/default/checkpoints"
    for link in ("best.pth", "last.pth"):
        (folder / link).unlink()
    assert run_program(*short(tiny_yaml, photos, finished)).code == 0
    assert (folder / "best.pth").readlink().name == (folder / "last.pth").readlink().name == "ckpt_epoch_0.pth"


def test_resume_from_another_folder_keeps_this_runs_settings(tiny_yaml, photos, one_epoch, tmp_path):
    args = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path]
    first = one_epoch / "tiny/default/checkpoints/last.pth"
    again = [*args, "--tag", "again", "--resume", first]
    done = run_program(*again, "--opts", "TRAIN.WEIGHT_DECAY", 0.3, "TRAIN.SAVE_EVERY_UPDATES", 1)
    assert done.code == 0, done.err
    folder = tmp_path / "tiny/again"
    saved = torch.load(folder / "checkpoints/last.pth", weights_only=True)
    assert [g["weight_decay"] for g in saved["optimizer"]["param_groups"]] in ([0.3, 0.0], [0.0, 0.3])
    assert (folder / "checkpoints/best.pth").exists()  # the best of this folder, not of the other
    other = run_program(*args, "--tag", "sgd", "--resume", first, "--optim", "sgd")
    assert other.code == 4 and other.error.startswith(f"error: {first}: ")
    assert "optimizer is AdamW" in other.error and "is SGD" in other.error
    finished = run_program(*args, "--tag", "end", "--resume", first, "--opts", "TRAIN.EPOCHS", 1)
    assert finished.code == 0 and "nothing left to train" in finished.out


def as_original(ours: dict, epoch: int) -> dict:
    """A checkpoint of ours in the original's form: moments in its order of groups, no counters."""
    names = [name for name in ours["model"] if "index" not in name]
    decayed = [n for n in names if ours["model"][n].ndim > 1 and "bias_table" not in n]
    order = decayed + [n for n in names if n not in decayed]
    kept, moved = ours["optimizer"]["param_groups"]  # timm puts those without decay first
    assert kept["weight_decay"] == 0.0 and moved["weight_decay"] > 0
    index = {}  # in our groups, parameters keep the order of the model
    for group, members in ((kept, [n for n in names if n not in decayed]), (moved, decayed)):
        index |= dict(zip(members, group["params"], strict=True))
    state = {i: ours["optimizer"]["state"][index[name]] for i, name in enumerate(order)}
    groups = [{"params": list(range(len(decayed)))}, {"params": list(range(len(decayed), len(order)))}]
    return {
        "model": ours["model"],
        "optimizer": {"state": state, "param_groups": groups},
        "lr_scheduler": {},
        "max_accuracy": 12.0,
        "scaler": {
            "scale": 4.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 9,
            "_growth_tracker": 0,
        },
        "epoch": epoch,
        "config": {"TAG": "default"},
    }


def with_1000_outputs(contents: dict) -> dict:
    """A checkpoint with rows for 1000 classes, in the head and in its moments."""
    classes = len(contents["model"]["head.weight"])

    def widened(value):
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == classes:
            return torch.cat([value, torch.rand(1000 - classes, *value.shape[1:])])
        return value

    model = {name: widened(v) if name.startswith("head.") else v for name, v in contents["model"].items()}
    state = {
        i: {kind: widened(v) for kind, v in values.items()} for i, values in contents["optimizer"]["state"].items()
    }
    return {**contents, "model": model, "optimizer": {**contents["optimizer"], "state": state}}


@pytest.fixture(scope="module")
def two_epochs(tiny_yaml, photos, tmp_path_factory) -> Path:
    """The checkpoints of a run of two epochs, one after each."""
    args = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path_factory.mktemp("two")]
    assert run_program(*args, "--opts", "TRAIN.KEEP_CHECKPOINTS", 0).code == 0
    return args[-1] / "tiny/default/checkpoints"


@pytest.mark.parametrize("way", ["--resume", "auto-resume"])
def test_a_training_run_of_the_original_continues_bit_equal(tiny_yaml, photos, two_epochs, tmp_path, way):
    """Stopped after epoch 0 and given the original's form, it ends like the run that was not stopped.

    The original has 1000 outputs for any data: those beyond the data's classes play no part.
    """
    args = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--tag", "again"]
    first = torch.load(two_epochs / "ckpt_epoch_0.pth", weights_only=True)
    folder = tmp_path / "tiny/again"
    folder.mkdir(parents=True)
    path = folder / "ckpt_epoch_0.pth"
    contents = as_original(first, 0)
    torch.save(contents if way == "--resume" else with_1000_outputs(contents), path)
    resumed = run_program(*args, *(["--resume", path] if way == "--resume" else []))
    assert resumed.code == 0, resumed.err
    assert "at epoch 1, update 9" in resumed.out and "[0/2][" not in resumed.out
    one, other = (torch.load(f / "last.pth", weights_only=True) for f in (two_epochs, folder / "checkpoints"))
    assert_same(one["model"], other["model"])
    assert_same(one["optimizer"], other["optimizer"])


def test_resume_from_weights_alone_says_what_starts_afresh(tiny_yaml, photos, one_epoch, tmp_path):
    args, weights = short(tiny_yaml, photos, tmp_path), tmp_path / "weights.pth"
    torch.save({"model": state(one_epoch)["model"]}, weights)
    done = run_program(*args[:6], "--tag", "weights", "--resume", weights, *args[6:])
    assert done.code == 0, done.err
    assert "(--resume); optimizer, schedule and counters start from scratch" in done.out


def test_fault_50_changed_training_samples_are_noticed(tiny_yaml, own_photos, finished):
    args = short(tiny_yaml, own_photos, finished)
    (own_photos / "train/class_0/photo_3.jpg").unlink()
    done = run_program(*args)
    assert done.code == 4 and done.error.startswith("error: DATA.DATA_PATH: ")
    assert "class class_0 had 12 files, now 11" in done.error
    accepted = run_program(*args, "DATA.ACCEPT_CHANGES", True)
    assert accepted.code == 0 and "class class_0 had 12 files, now 11" in accepted.out


def test_a_refused_start_leaves_the_folder_free(tiny_yaml, photos, tmp_path):
    args = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path]
    refused = run_program(
        *args, "--pretrained", tmp_path / "gone.pth", "--opts", "TRAIN.EPOCHS", 1, "TRAIN.BASE_LR", 0.2
    )
    assert refused.code == 4
    assert run_program(*args, "--opts", "TRAIN.EPOCHS", 1, PATH="").code == 0  # and no git is needed


def test_fault_31_no_loader_process_outlives_a_killed_run(tiny_yaml, photos, tmp_path):
    """Neither the workers nor the server that made them, ten seconds after SIGKILL."""
    arguments = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--opts", "DATA.NUM_WORKERS", 2]
    process = subprocess.Popen(
        command(*arguments, "TRAIN.EPOCHS", 1000),
        env=environment(MARK=str(tmp_path)),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "[1/" in line:
            break

    def marked():
        pids = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if int(pid) != process.pid]
        return [pid for pid in pids if f"MARK={tmp_path}".encode() in _environ(pid)]

    assert len(marked()) >= 3
    process.kill()
    process.wait()
    last = time.monotonic() + 10
    while marked() and time.monotonic() < last:
        time.sleep(0.5)
    assert marked() == []


def _environ(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
