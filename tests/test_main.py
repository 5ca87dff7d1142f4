"""The program as its users start it: the main job, evaluation, throughput, and every refusal."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest
import torch

from tests.conftest import ROOT, accuracy, command, environment, run_program
from tests.tools.builders import write_photos

SWIN_TINY = ROOT / "configs/swin_tiny.yaml"


@pytest.fixture(scope="module")
def trained(tiny_yaml, photos, tmp_path_factory):
    """Output folder of a finished short run."""
    output = tmp_path_factory.mktemp("trained")
    arguments = ("--cfg", tiny_yaml, "--data-path", photos, "--output", output, "--opts", "TRAIN.EPOCHS", 1)
    done = run_program(*arguments, fresh=True)
    assert done.code == 0, done.err
    return output


@pytest.mark.slow
def test_the_main_job_trains_swin_tiny_on_photographs(tmp_path):
    photos = write_photos(tmp_path / "photos", classes=2, train=4, val=2, size=256)
    done = run_program(
        *("--cfg", SWIN_TINY, "--data-path", photos, "--output", tmp_path, "--batch-size", 2),
        *("--opts", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "PRINT_FREQ", 1, "DATA.NUM_WORKERS", 1),
        processes=2,
        fresh=True,
    )
    assert done.code == 0, done.err
    assert "SwinTransformer: 27,520,892 parameters" in done.out  # Swin-T with a head for two classes
    assert done.out.count("] [0/1][") == 2
    assert accuracy(done.out)[1] == 4


def test_fault_07_without_torchrun_and_gpu_it_runs(trained):
    lines = [json.loads(line) for line in (trained / "tiny/default/metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train"] * 5 + ["val"]
    assert all(line["loss"] > 0 for line in lines) and lines[-1]["count"] == 15


@pytest.mark.parametrize("workers", [0, 2])
def test_fault_25_ctrl_c_ends_the_run_after_an_update(tiny_yaml, photos, tmp_path, workers):
    arguments = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--opts", "TRAIN.EPOCHS", 500]
    job = subprocess.Popen(
        command(*arguments, "DATA.NUM_WORKERS", workers),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for line in job.stdout:
            if "[2/500][" in line:
                break
        os.killpg(job.pid, signal.SIGINT)  # as the terminal does: to the loader's processes too
        out, err = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 130, out + err
    assert err.splitlines() == [err.strip()] and err.startswith("error: interrupted")
    assert "error: interrupted" in (tmp_path / "tiny/default/log.txt").read_text()


def test_without_data_the_quickstart_is_named():
    done = run_program("--cfg", SWIN_TINY)
    assert done.code == 3 and done.error.startswith("error: DATA.DATA_PATH: ")
    assert "--data-path" in done.error and "quickstart.sh" in done.error


def test_an_error_is_one_line_for_the_whole_job():
    done = run_program("--cfg", SWIN_TINY, processes=2)
    assert done.code != 0 and done.error.startswith("error: DATA.DATA_PATH: ")


def test_debug_shows_the_traceback():
    assert "Traceback" not in run_program("--cfg", "gone.yaml").err
    assert "Traceback" in run_program("--cfg", "gone.yaml", "--debug").err


def test_help_needs_nothing_else():
    done = run_program("--help", fresh=True)
    assert done.code == 0 and "--accumulation-steps" in done.out


def test_throughput_needs_no_data(tiny_yaml):
    done = run_program("--cfg", tiny_yaml, "--throughput")
    assert done.code == 0 and "images/s (median of" in done.out


def test_a_dry_run_goes_on_from_the_checkpoint_and_writes_nothing(trained, tiny_yaml, photos, tmp_path):
    runs = shutil.copytree(trained, tmp_path / "runs")
    before = contents(runs)
    arguments = ("--cfg", tiny_yaml, "--data-path", photos, "--output", runs, "--opts", "TRAIN.EPOCHS", 4)
    refused = run_program(*arguments, cwd=tmp_path)
    command = f"--tag NEW --resume {runs}/tiny/default/checkpoints/last.pth"
    assert refused.error.startswith(f"error: {runs}/tiny/default: ")
    assert "TRAIN.EPOCHS was 1, now 4" in refused.error and command in refused.error
    done = run_program(*arguments, *command.split(), "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "dry run: loss" in done.out and "for 3 epochs" in done.out, done.out
    assert contents(runs) == before and [*tmp_path.iterdir()] == [runs]


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_evaluation_writes_nothing_and_takes_the_recipe_and_the_best_checkpoint_of_a_run(
    trained, tiny_yaml, photos, tmp_path
):
    arguments = ["--data-path", photos, "--eval", "--resume", trained / "tiny/default"]
    done = run_program(*arguments, "--cfg", tiny_yaml, cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"tensors from {trained}/tiny/default/checkpoints/best.pth" in done.out
    assert accuracy(done.out)[1] == 15
    without = run_program(*arguments, "--batch-size", 5, cwd=tmp_path, processes=2)
    assert without.code == 0 and accuracy(without.out) == accuracy(done.out), without.err
    assert list(tmp_path.iterdir()) == []


def test_weights_without_a_recipe_need_one(trained, tmp_path):
    torch.save(
        torch.load(trained / "tiny/default/checkpoints/best.pth", weights_only=True)["model"], tmp_path / "w.pth"
    )
    done = run_program("--eval", "--resume", tmp_path / "w.pth")
    assert done.code == 2 and done.error.startswith(f"error: {tmp_path}/w.pth: ") and "--cfg" in done.error
    speed = run_program("--throughput", "--resume", trained / "tiny/default", "--batch-size", 2)
    assert speed.code == 0 and "at 32x32" in speed.out, speed.err


def test_evaluation_takes_only_the_file_named(tiny_yaml, photos):
    done = run_program("--cfg", tiny_yaml, "--data-path", photos, "--eval")
    assert done.code == 2 and "--resume FILE" in done.error


@pytest.mark.parametrize("weights", ["best.pth", "plain"])
def test_pretrained_weights_with_other_classes_get_a_fresh_head(trained, tiny_yaml, photos, tmp_path, weights):
    path = trained / "tiny/default/checkpoints/best.pth"
    if weights == "plain":
        state = torch.load(path, weights_only=True)["model"]
        path = tmp_path / "plain.pth"
        torch.save({"model": {**state, "head.weight": torch.zeros(9, 32), "head.bias": torch.zeros(9)}}, path)
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--pretrained", path),
        *("--opts", "TRAIN.EPOCHS", 1),
    )
    assert done.code == 0, done.err
    assert ("head re-initialised to zero for 3 classes" in done.out) == (weights == "plain")
    assert "(--pretrained)" in done.out


def test_fault_08_an_output_folder_belongs_to_one_configuration(trained, tiny_yaml, photos):
    before = (trained / "tiny/default/config.yaml").read_bytes()
    done = run_program(
        "--cfg",
        tiny_yaml,
        "--data-path",
        photos,
        "--output",
        trained,
        "--opts",
        "TRAIN.EPOCHS",
        1,
        "TRAIN.BASE_LR",
        0.1,
    )
    assert done.code == 2 and done.error.startswith(f"error: {trained}/tiny/default: ")
    assert "TRAIN.BASE_LR was 0.05, now 0.1" in done.error and "--tag" in done.error
    assert (trained / "tiny/default/config.yaml").read_bytes() == before


def test_fault_32_another_global_batch_is_refused(trained, tiny_yaml, photos):
    done = run_program(
        "--cfg", tiny_yaml, "--data-path", photos, "--output", trained, "--batch-size", 8, "--opts", "TRAIN.EPOCHS", 1
    )
    assert done.code == 2 and done.error.startswith("error: TRAIN.GLOBAL_BATCH_SIZE: ") and "set it to 4" in done.error


def test_checkpoints_are_not_overwritten_without_auto_resume(trained, tiny_yaml, photos):
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--output", trained),
        *("--opts", "TRAIN.EPOCHS", 1, "TRAIN.AUTO_RESUME", False),
    )
    assert done.code == 2 and done.error.startswith(f"error: {trained}/tiny/default: ")
    assert "TRAIN.AUTO_RESUME" in done.error


@pytest.mark.parametrize("change", ["classes", "architecture"])
def test_fault_10_resume_of_another_model_is_refused(trained, tiny_yaml, photos, own_photos, tmp_path, change):
    path = trained / "tiny/default/checkpoints/last.pth"
    more, data = [], photos
    if change == "classes":
        (own_photos / "train/class_2").rename(own_photos / "train/klass_2")
        (own_photos / "val/class_2").rename(own_photos / "val/klass_2")
        data, message = own_photos, "the checkpoint has 3 classes"
    else:
        more, message = ["MODEL.SWIN.DEPTHS", "[2, 4]"], "26 missing: layers.1.blocks.2.norm1.weight"
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", data, "--output", tmp_path, "--resume", path),
        *("--opts", "TRAIN.EPOCHS", 2, *more),
    )
    assert done.code == 4 and message in done.error


def test_fault_13_a_damaged_file_named_by_resume_is_refused(trained, tiny_yaml, photos, tmp_path):
    path = tmp_path / "ckpt.pth"
    path.write_bytes((trained / "tiny/default/checkpoints/last.pth").read_bytes()[:-1000])
    done = run_program("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--resume", path)
    assert done.code == 4 and done.error.startswith(f"error: {path}: ")


def test_fault_13_training_goes_on_from_the_checkpoint_before(tiny_yaml, photos, tmp_path):
    args = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--opts", "TRAIN.SAVE_EVERY_UPDATES", 4]
    assert run_program(*args).code == 0
    folder = tmp_path / "tiny/default/checkpoints"
    newest = folder / "ckpt_epoch_1.pth"
    whole = torch.load(newest, weights_only=True)["model"]
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = run_program(*args)
    assert done.code == 0 and done.out.count("not resuming from ckpt_epoch_1.pth") == 1
    again = torch.load(newest, weights_only=True)["model"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    finished = run_program(*args)
    assert finished.code == 0 and "already trained: 2 epochs" in finished.out and "0 epochs" not in finished.out


@pytest.mark.parametrize("option", ["--resume", "--pretrained"])
def test_fault_19_malicious_weights_are_refused(tiny_yaml, photos, tmp_path, option):
    from tests.utils.checkpoints.test_files import Evil

    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    torch.save({"model": Evil(canary)}, path)
    done = run_program("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, option, path)
    assert done.code == 4 and done.error.startswith(f"error: {path}: ") and "mkdir" in done.error
    assert not canary.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_fault_38_a_bad_image_ends_training_with_its_path(tiny_yaml, own_photos, tmp_path, workers):
    bad = own_photos / "train/class_1/photo_3.jpg"
    bad.write_text("this is no picture")
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", own_photos, "--output", tmp_path, "--opts", "DATA.NUM_WORKERS", workers)
    )
    assert done.code == 3 and done.error.startswith(f"error: {bad}: ")


def test_fault_49_three_samples_train(tiny_yaml, tmp_path):
    photos = write_photos(tmp_path / "photos", classes=3, train=1, val=1)
    done = run_program("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--batch-size", 8)
    assert done.code == 0 and "an epoch uses 3 of 3 samples" in done.out


def test_fault_49_fewer_samples_than_processes_are_refused(tiny_yaml, tmp_path):
    photos = write_photos(tmp_path / "photos", classes=1, train=1, val=1)
    done = run_program("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, processes=2)
    assert done.code != 0 and done.error.startswith("error: DATA.DATA_PATH: 1 training samples for 2 ranks")


@pytest.mark.parametrize(
    "mixing",
    [["AUG.CUTMIX", 0, "AUG.MIXUP_MODE", "pair"], ["AUG.MIXUP", 0, "AUG.CUTMIX_MINMAX", "[0.2, 0.8]"]],
    ids=["mixup", "cutmix"],
)
def test_fault_60_odd_batches_and_few_classes_train_and_evaluate(tiny_yaml, photos, tmp_path, mixing):
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--batch-size", 5),
        *("--opts", "TRAIN.EPOCHS", 1, *mixing),
    )
    assert done.code == 0 and "Acc@1 " in done.out and "Acc@3" not in done.out


def test_multistep_layer_decay_sgd_and_float16_train(tiny_yaml, photos, tmp_path):
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--optim", "sgd", "--use-checkpoint"),
        *("--opts", "TRAIN.LR_SCHEDULER.NAME", "multistep", "TRAIN.LAYER_DECAY", 0.7, "AMP_DTYPE", "float16"),
        *("TRAIN.EPOCHS", 1, "MODEL.SWIN.APE", True, "TRAIN.WARMUP_EPOCHS", 0),
    )
    assert done.code == 0, done.err
    assert "mixed float16" in done.out and "SGD, weight decay" in done.out


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_on_two_ranks_and_resumes_bit_equal(trained, tiny_yaml, photos, tmp_path):
    arguments = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--tag", "student", "--opts"]
    arguments += ["DISTILLATION.KIND", "soft", "DISTILLATION.WEIGHTS", trained / "tiny/default", "PRINT_FREQ", 2]
    arguments += ["MODEL.TYPE", "timm", "MODEL.TIMM.NAME", "test_convnext", "TRAIN.EMA.ENABLE", True]
    done = run_program(*arguments, processes=2)
    assert done.code == 0, done.err
    assert re.search(r"teacher: SwinTransformer, \d+ tensors from .*/tiny/default\b.*, at 32x32 pixels", done.out)
    run = tmp_path / "tiny/student"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["kind"] == "train"]
    assert all(line["loss"] == pytest.approx((line["base"] + line["distillation"]) / 2) for line in updates) and updates
    assert [line["count"] for line in lines if line["kind"] == "val"] == [15, 15]
    whole = torch.load(run / "checkpoints/last.pth", weights_only=True)
    names = {name for group in ("model", "model_ema") for name in whole[group]}
    assert not any("attn" in name for name in names) and whole["optimizer_name"] == "AdamW"

    for path in (run / "checkpoints").glob("*"):
        if not path.name.startswith("ckpt_epoch_0.pth"):
            path.unlink()
    assert run_program(*arguments, processes=2).code == 0
    again = torch.load(run / "checkpoints/last.pth", weights_only=True)
    assert again["counters"] == whole["counters"]
    assert all(
        torch.equal(again[group][name], value)
        for group in ("model", "model_ema")
        for name, value in whole[group].items()
    )
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == lines


def test_a_dry_run_with_a_teacher_writes_nothing(trained, tiny_yaml, photos, tmp_path):
    arguments = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--dry-run", "--opts"]
    arguments += ["DISTILLATION.KIND", "hard", "DISTILLATION.WEIGHTS", trained / "tiny/default"]
    done = run_program(*arguments)
    assert done.code == 0 and "dry run: loss" in done.out and not [*tmp_path.iterdir()], done.err
