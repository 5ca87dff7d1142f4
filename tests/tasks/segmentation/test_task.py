"""The program trains, resumes, evaluates and predicts a tiny segmentation of made images."""

import csv
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.registry import build_model
from scripts.open_model import open_model
from tasks.registry import new_task
from tasks.show import draw_samples
from tests.conftest import ROOT, run_program
from tests.tasks.parts import same_bits_in_two_parts
from tests.tools.builders import configured
from utils.batches import Batch
from utils.distributed.world import World

TINY = """
TASK: segmentation
DATA: {BATCH_SIZE: 2, NUM_WORKERS: 0, IMG_SIZE: 32}
MODEL: {NAME: seg, DROP_PATH_RATE: 0.1, SWIN: {EMBED_DIM: 8, DEPTHS: [1, 2], NUM_HEADS: [1, 2], WINDOW_SIZE: 4},
        UPERNET: {CHANNELS: 12, AUXILIARY_CHANNELS: 6}}
TRAIN: {EPOCHS: 3, WARMUP_EPOCHS: 0, GLOBAL_BATCH_SIZE: 4, LR: 0.02, BASE_LR: 0.02, MIN_LR: 0.0, WARMUP_LR: 0.0,
        LR_SCHEDULER: {NAME: poly, WARMUP_PREFIX: false}}
AUG: {BASE_SIZE: [80, 36]}
PRINT_FREQ: 1
"""
COLOURS = np.array([[40, 40, 40], [220, 30, 30], [30, 30, 220]], np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rectangles of two classes on ground: 12 training and 5 validation images of different sizes."""
    root = tmp_path_factory.mktemp("rectangles")
    for split, count in (("train", 12), ("val", 5)):
        for i in range(count):
            draw = np.random.default_rng([i, count])
            height, width = draw.integers(30, 60, 2)
            labels = np.zeros((height, width), np.uint8)
            top, left = draw.integers(0, 12, 2)
            labels[top : top + 16, left : left + 16] = 1 + i % 2
            for name, pixels in (("images", COLOURS[labels]), ("labels", labels)):
                path = root / name / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "classes.txt").write_text("ground\nred\nblue\n")
    (root / "tiny.yaml").write_text(TINY)
    return root


def task_of(folder, **more):
    return new_task(configured(folder / "tiny.yaml", DATA__DATA_PATH=str(folder), **more), World())


def run(folder, *arguments, **more):
    done = run_program("--cfg", folder / "tiny.yaml", "--data-path", folder, "--output", folder, *arguments, **more)
    assert done.code == 0, done.err
    return done.out


@pytest.fixture(scope="module")
def trained(folder):
    run(folder, "--tag", "whole")
    return folder / "seg/whole"


@pytest.mark.parametrize("average", ["all", "counted"])
def test_the_loss_is_the_released_one(folder, average):
    task = task_of(folder, LOSS__AVERAGE=average)
    model = task.new_model(task.open_data().info).train()
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8)
    labels[:, :7] = 255
    torch.manual_seed(0)
    losses = task.loss(model, Batch(images, labels, (0, 1)))
    torch.manual_seed(0)
    expected = []
    for logits in model(images):
        full = F.interpolate(logits, (32, 32), mode="bilinear")
        pixels = F.cross_entropy(full, labels.long(), ignore_index=255, reduction="none")
        expected.append(pixels.mean() if average == "all" else pixels.sum() / (labels != 255).sum())
    torch.testing.assert_close(losses["loss"], expected[0] + 0.4 * expected[1], rtol=2e-2, atol=0)  # bfloat16
    assert set(losses) == {"loss", "decode", "auxiliary"}


@pytest.mark.seconds
def test_it_learns_and_its_metrics_are_recorded(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    values = [line["miou"] for line in lines if line["kind"] == "val"]
    assert len(values) == 3 and {"macc", "aacc"} <= lines[-1].keys() | lines[-2].keys()
    contents = torch.load(trained / "checkpoints/last.pth", weights_only=True)
    assert contents["class_names"] == ["ground", "red", "blue"] and contents["label_values"]["255"] == 255
    assert {"backbone.norm0.weight", "decode_head.conv_seg.weight"} <= contents["model"].keys()


@pytest.mark.seconds
def test_predictions_are_drawn_after_every_evaluation(trained):
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert any("examples" in tag for tag in board.Tags()["images"])


@pytest.mark.slow
def test_two_ranks_share_the_statistics_of_their_batch_norms(folder):
    """The running statistics of two ranks with half the batch each are those of one with the whole."""
    given = ["--epochs", 1, "--opts", "AMP_ENABLE", False, "MODEL.DROP_PATH_RATE", 0, "MODEL.UPERNET.DROPOUT", 0]
    states = []
    for processes in (0, 2):
        tag = f"on {processes}"
        run(folder, "--tag", tag, "--batch-size", 2 if processes else 4, *given, processes=processes)
        states.append(torch.load(folder / f"seg/{tag}/checkpoints/last.pth", weights_only=True)["model"])
    for name, value in states[0].items():
        if "running" in name:
            torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_sharded_training_is_the_same(folder):
    given = ["--epochs", 1, "--opts", "AMP_ENABLE", False, "TRAIN.PARALLEL"]
    states = []
    for kind in ("ddp", "fsdp"):
        run(folder, "--tag", kind, *given, kind, processes=2)
        states.append(torch.load(folder / f"seg/{kind}/checkpoints/last.pth", weights_only=True)["model"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.seconds
def test_a_run_in_two_parts_ends_with_the_same_bits(folder, trained):
    """With loader workers, which the whole run had none of."""
    assert same_bits_in_two_parts(partial(run, folder), folder / "seg", last_epoch=2)


@pytest.mark.seconds
@pytest.mark.parametrize("processes", [1, 2])
def test_any_number_of_ranks_evaluates_the_same(folder, trained, processes):
    table, classes = folder / f"{processes}.csv", folder / f"classes{processes}.csv"
    given = ["--opts", "TEST.RESULTS", table, "TEST.PER_CLASS", classes]
    out = run(folder, "--eval", "--resume", trained / "checkpoints/last.pth", *given, processes=processes)
    (row,) = csv.DictReader(table.open())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    value = [line["miou"] for line in lines if line["kind"] == "val"][-1]
    assert float(row["miou"]) == pytest.approx(value, rel=1e-4) and row["samples"] == "5" and "mIoU" in out
    assert [row["class"] for row in csv.DictReader(classes.open())] == ["ground", "red", "blue"]


@pytest.mark.seconds
@pytest.mark.parametrize("more", [("TEST.MODE", "slide"), ("TEST.SCALES", "[0.5, 1]", "TEST.FLIP", "True")])
def test_windows_scales_and_flips_evaluate(folder, trained, more):
    out = run(folder, "--eval", "--resume", trained / "checkpoints/last.pth", "--opts", *more)
    assert "mIoU" in out and "on 5 images" in out


@pytest.mark.seconds
def test_predictions_are_tables_overlays_and_label_maps(folder, trained):
    table, drawn, maps = folder / "shares.csv", folder / "drawn", folder / "maps"
    done = run_program(
        folder / "images/val", "--model", trained, "--output", table, "--pictures", drawn, "--label-maps", maps,
        program=ROOT / "scripts/predict.py",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 5 and rows[0]["class_1"] in ("ground", "red", "blue")
    assert sum(float(rows[0][f"percent_{i}"] or 0) for i in (1, 2, 3) if f"percent_{i}" in rows[0]) == pytest.approx(
        100, abs=0.1
    )
    for path in sorted(maps.glob("*.png")):
        labels = Image.open(path)
        assert labels.mode == "P" and np.asarray(labels).max() <= 2
        assert labels.size == Image.open(folder / "images/val" / f"{path.stem.split('_')[1]}.png").size
    assert len(list(drawn.glob("*.png"))) == len(list(maps.glob("*.png"))) == 5


def test_a_classifier_starts_the_backbone_and_new_parts_are_named(folder):
    task = task_of(folder)
    info = task.open_data().info
    options = {
        "embed_dim": 8,
        "depths": (1, 2),
        "num_heads": (1, 2),
        "window_size": 4,
        "num_classes": 9,
        "img_size": 32,
    }
    classifier = build_model("swin", **options)
    line = task.load(task.new_model(info), {"model": classifier.state_dict()}, "x", info)
    assert "new: norm0, norm1, decode_head.conv_seg" in line


def test_samples_are_drawn_with_their_labels(folder):
    task = task_of(folder)
    data = task.open_data()
    assert draw_samples(task, folder / "sheet.png", 4, seed=0) == 4 and data.train_size == 12


@pytest.mark.seconds
def test_it_is_published_with_its_classes(folder, trained, tmp_path):
    best = trained / "checkpoints/best.pth"
    done = run_program(best, "me/mine", "--folder", tmp_path / "hub", program=ROOT / "scripts/push_to_hub.py")
    assert done.code == 0 and "verified: same weights in this program" in done.out, done.err
    card = (tmp_path / "hub/README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "predict.py photo.jpg --model hf:me/mine" in card
    assert str(folder) not in card and "from scripts.predictor" not in card
    read, own = open_model(str(tmp_path / "hub/model.safetensors")), open_model(str(best))
    assert replace(read.info, fingerprint="") == replace(own.info, fingerprint="")


@pytest.mark.seconds
def test_it_is_exported_with_its_classes(folder, trained, tmp_path):
    best, target = trained / "checkpoints/best.pth", tmp_path / "seg.pt2"
    done = run_program(best, target, program=ROOT / "scripts/export.py")
    assert done.code == 0 and "verified: logits differ by at most" in done.out, done.err
    exported, own = open_model(str(target)), open_model(str(best))
    assert replace(exported.info, fingerprint="") == replace(own.info, fingerprint="")
    maps = {}
    for model in (best, target):
        given = [folder / "images/val", "--model", model, "--label-maps", tmp_path / model.suffix]
        done = run_program(*given, program=ROOT / "scripts/predict.py")
        assert done.code == 0, done.err
        maps[model] = [np.asarray(Image.open(path)) for path in sorted((tmp_path / model.suffix).iterdir())]
    assert len(maps[target]) == 5 and all(a.shape == b.shape for a, b in zip(*maps.values(), strict=True))
