"""The same results for every number of processes: training by checkpoint, evaluation by count."""

import csv
import json
from pathlib import Path

import pytest
import torch

from data.pipeline.samplers import epoch_order
from tests.conftest import ROOT, accuracy, run_program, start_ranks
from tests.tools.builders import open_folder, write_photos
from utils.seeding import derive_seed

# float32, and nothing drawn by process or micro-batch: mixing and stochastic depth off
EXACT = ["--disable_amp", "--opts", "MODEL.DROP_PATH_RATE", 0, "AUG.MIXUP", 0, "AUG.CUTMIX", 0, "TRAIN.EPOCHS", 1]
EXACT += ["TRAIN.BASE_LR", 0.005]  # the first steps of AdamW are as long for a rounding error as for a gradient


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "tiny/default/checkpoints/last.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def one_process(tiny_yaml, photos, tmp_path_factory) -> Path:
    """36 samples in batches of 8: five updates, the last of 4 samples."""
    output = tmp_path_factory.mktemp("one")
    done = run_program(
        "--cfg", tiny_yaml, "--data-path", photos, "--output", output, "--batch-size", 8, *EXACT, processes=1
    )
    assert done.code == 0, done.err
    assert "1 epoch x 5 updates" in done.out
    return output


@pytest.mark.parametrize(
    ("processes", "batch", "more"),
    [(2, 4, []), (1, 4, ["--accumulation-steps", 2]), (2, 8, ["TRAIN.GLOBAL_BATCH_SIZE", 8]), (4, 1, ["acc", 2])],
    ids=["two processes", "accumulation", "global batch", "both"],
)
def test_fault_32_five_updates_are_the_same(one_process, tiny_yaml, photos, tmp_path, processes, batch, more):
    options = more if more[:1] == ["--accumulation-steps"] else []
    exact = EXACT + (more if more[:1] == ["TRAIN.GLOBAL_BATCH_SIZE"] else [])
    if more[:1] == ["acc"]:
        exact = [*EXACT, "TRAIN.ACCUMULATION_STEPS", 2]
    arguments = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--batch-size", batch]
    done = run_program(*arguments, *options, *exact, processes=processes)
    assert done.code == 0, done.err
    expected, got = weights(one_process), weights(tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=0, msg=name)
    records = [
        [json.loads(line) for line in (output / "tiny/default/metrics.jsonl").read_text().splitlines()]
        for output in (one_process, tmp_path)
    ]
    assert [r["samples"] for r in records[0][:-1]] == [r["samples"] for r in records[1][:-1]] == [16, 32, 36]
    for a, b in zip(*records, strict=True):
        assert a["kind"] == b["kind"] and a["update"] == b["update"]
        assert a.keys() == b.keys()
        for key in {"loss", "lr", "grad_norm", "train_loss"} & a.keys():
            assert a[key] == pytest.approx(b[key], rel=1e-5)


def test_evaluation_of_65_images_gives_the_same_counts(tmp_path):
    """1, 2 and 3 processes, batches of 1, 7 and 64: no sample twice, none left out."""
    photos = write_photos(tmp_path / "photos", classes=7, train=1, val=10)
    for extra in range(5):  # 70 - 5 = 65, not divided by 2 or 3
        (photos / "val" / f"class_{extra}" / "photo_9.jpg").unlink()
    results = []
    for processes in (1, 2, 3):
        done = run_program(photos, processes=processes, program=ROOT / "tests/tools/ranks/counting.py")
        lines = [line for line in done.out.splitlines() if line.startswith("result")]
        assert len(lines) == 3, done.err
        results += lines
    assert len(set(results)) == 1, results
    correct1, correct5, count = map(int, results[0].split()[1:4])
    assert count == 65 and 0 < correct1 < correct5 < 65


@pytest.mark.parametrize("processes", [0, 3])
def test_fault_29_eval_of_a_checkpoint_on_any_number_of_processes(one_process, tiny_yaml, photos, processes):
    done = run_program(
        *("--cfg", tiny_yaml, "--data-path", photos, "--disable_amp", "--eval", "--batch-size", 4),
        *("--resume", one_process / "tiny/default/checkpoints/best.pth"),
        processes=processes,
    )
    assert done.code == 0, done.err
    trained = json.loads((one_process / "tiny/default/metrics.jsonl").read_text().splitlines()[-1])
    assert accuracy(done.out) == (trained["correct1"], 15)


def test_fault_29_training_of_65_samples_on_two_processes(tiny_yaml, tmp_path):
    photos = write_photos(tmp_path / "photos", classes=5, train=13, val=1)
    arguments = ["--cfg", tiny_yaml, "--data-path", photos, "--output", tmp_path, "--opts", "TRAIN.EPOCHS", 1]
    done = run_program(*arguments, processes=2)
    assert done.code == 0, done.err
    assert "an epoch uses 64 of 65 samples" in done.out


@pytest.mark.parametrize("bad", [0, 1])
def test_fault_28_bad_data_of_one_process_end_all_with_one_line_and_the_same_code(tiny_yaml, own_photos, tmp_path, bad):
    """Two processes as a cluster starts them; an unreadable image for each in turn, in the first update."""
    sources = open_folder(own_photos)
    own = epoch_order(36, derive_seed("order", 0, 0))[:8].tensor_split(2)[bad]  # of the first update: 2 x 4 images
    file = Path(sources.train.name(int(own[0])))
    file.write_bytes(b"no image")
    started = start_ranks("--cfg", tiny_yaml, "--data-path", own_photos, "--output", tmp_path, processes=2)
    outputs = [rank.communicate(timeout=120) for rank in started]
    assert [rank.returncode for rank in started] == [3, 3], outputs
    errors = [line for _, err in outputs for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"error: {file}: ")
    assert "Traceback" not in "".join(err for _, err in outputs)


@pytest.mark.slow
def test_fault_38_what_any_process_leaves_out_is_listed_and_not_counted(tiny_yaml, own_photos, tmp_path):
    """Unreadable images of both processes: named once each; the evaluation counts the others, training goes on."""
    bad = [own_photos / "val/class_0/photo_0.jpg", own_photos / "val/class_0/photo_1.jpg"]  # the shares of 0 and 1
    bad += sorted((own_photos / "train/class_1").iterdir())[:3]
    for file in bad:
        file.write_bytes(b"no image")
    arguments = ["--cfg", tiny_yaml, "--data-path", own_photos, "--output", tmp_path]
    options = ["--opts", "DATA.ON_BAD_IMAGE", "skip", "TRAIN.EPOCHS", 1]
    done = run_program(*arguments, *options, processes=2)
    assert done.code == 0, done.err
    assert accuracy(done.out)[1] == 13
    assert all(str(file) in done.out for file in bad)
    tables = ["TEST.PER_CLASS", tmp_path / "c.csv", "TEST.RESULTS", tmp_path / "r.csv"]
    resume = ["--eval", "--resume", tmp_path / "tiny/default/checkpoints/last.pth"]
    done = run_program(*arguments, *resume, *options, *tables, processes=2)
    assert done.code == 0 and accuracy(done.out)[1] == 13, done.err
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert [(r["class"], r["samples"]) for r in rows] == [("class_0", "3"), ("class_1", "5"), ("class_2", "5")]
    assert sum(int(r["correct"]) for r in rows) == accuracy(done.out)[0]
