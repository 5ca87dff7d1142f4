"""A folder of photographs as people have them: unsplit, imbalanced, from a phone, with names in any script."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.conftest import ROOT, run_program

SMALL = {"PATCH_SIZE": 4, "EMBED_DIM": 16, "DEPTHS": [1, 1], "NUM_HEADS": [1, 2], "WINDOW_SIZE": 4}
RECIPE = [
    *("--epochs", 2, "--warmup-epochs", 0, "--img-size", 32, "--workers", 0),
    *("--opts", "MODEL.PRETRAINED", "", "DATA.SAMPLER", "balanced", "TEST.BEST", "macro_f1"),
    *(word for key, value in SMALL.items() for word in (f"MODEL.SWIN.{key}", value)),
]
COUNTS = {"日本の魚": 24, "Kirche Ä ö ü": 12, "dog": 3}


def turned(image: Image.Image, path: Path) -> None:
    """Stores an image as a phone does: turned to the left, with EXIF that turns it back; lossless."""
    exif = Image.Exif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "photographs"
    scenes = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            box = (23 * i % 500, 41 * number + 7 * i % 200)
            scenes[number % 2].crop((*box, box[0] + 90, box[1] + 90)).save(folder / name / f"{i}.jpg", quality=95)
    shutil.copy(ROOT / "tests/data/photo.heic", folder / "dog/IMG_1.HEIC")
    turned(scenes[1].crop((400, 200, 500, 300)), folder / "dog/turned.png")
    scenes[0].crop((0, 300, 100, 400)).convert("CMYK").save(folder / "Kirche Ä ö ü/print.jpg")
    scenes[0].crop((0, 300, 100, 400)).save(folder / "Kirche Ä ö ü/print_again.jpg", quality=60)
    (folder / "dog/notes.txt").write_text("x")
    return folder


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    """The folder of a run of two ranks, and what it said."""
    output = tmp_path_factory.mktemp("output")
    line = ["--cfg", "finetune", "--data-path", photographs, "--output", output, *RECIPE]
    done = run_program(*line, processes=2)
    assert done.code == 0, done.err
    return output / "finetune/default", done.out


def test_it_says_what_it_did_with_each(trained, photographs):
    folder, out = trained
    assert "the dataset has no splits: 9 of 43 images are held out for validation" in out
    assert "left out: 1 file without an image extension" in out and "notes.txt" in out
    assert "near-duplicates: 2 images in 1 group stay together" in out and "EXIF orientation: applied" in out
    with (folder / "split.csv").open() as file:
        splits = {row["path"]: row["split"] for row in csv.DictReader(file)}
    assert len(splits) == 43 and list(splits.values()).count("val") == 9 and "dog/IMG_1.HEIC" in splits
    assert splits["Kirche Ä ö ü/print.jpg"] == splits["Kirche Ä ö ü/print_again.jpg"]
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {
        "macro_f1",
        "balanced_accuracy",
        "macro_precision",
        "auroc",
        "ece",
    } <= record.keys() and "topk" not in record
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    assert {"val_confusion.png", "val_reliability.png", "train_first_batch.png"} <= pictures
    assert "Glyph" not in out and "UserWarning" not in out


def test_later_evaluations_use_what_was_held_out(trained, photographs):
    folder, _ = trained
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(line["macro_f1"] for line in records if line["kind"] == "val")
    done = run_program("--eval", "--resume", folder, "--data-path", photographs)
    assert done.code == 0 and "data: 9 validation samples, 3 classes" in done.out, done.err
    assert f"F1 {best:.2f}" in done.out and "95% intervals: " in done.out
    contents = torch.load(folder / "checkpoints/best.pth", weights_only=True)
    assert len(contents["held_out"]) == 9 and contents["calibration"]["temperature"] > 0


def test_a_turned_photograph_is_predicted_like_the_upright_one(trained, tmp_path):
    image = Image.fromarray(load_sample_images().images[0]).crop((100, 50, 300, 180))
    image.save(tmp_path / "upright.png")
    turned(image, tmp_path / "turned.png")
    files = [tmp_path / name for name in ("upright.png", "turned.png")]
    line = [*files, "--model", trained[0], "--device", "cpu", "--output", tmp_path / "out.csv"]
    done = run_program(*line, program=ROOT / "scripts/predict.py")
    assert done.code == 0, done.err
    first, second = csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text()))
    assert first.pop("path") != second.pop("path") and first == second and first["class_1"] in COUNTS
