"""The text of a model card."""

import contextlib
import io

import pytest
import timm
import torch
import yaml
from PIL import Image

from configs.loading import load_config
from data.sources.files import FoundImages
from scripts.hub_folder import write_folder
from scripts.model_card import Card, model_card, recipe
from scripts.open_model import open_model
from scripts.predict import predictions

COUNTS = {"samples": [4, 1, 0], "correct": [2, 1, 0], "predicted": [2, 1, 2]}
STORED = {"per_class": COUNTS, "data_counts": [700, 800, 900], "global_batch": 64, "versions": {"torch": "2.9"}}


@pytest.fixture
def opened(made, tmp_path):
    """A checkpoint with the results of its evaluation. Returns a function of further contents."""

    def open_with(**more):
        torch.save({**torch.load(made[0] / "model.pth"), **more}, tmp_path / "own.pth")
        return open_model(str(tmp_path / "own.pth"))

    return open_with


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_classes_have_their_images_and_scores(opened):
    """Undefined scores are left empty, and macro F1 is that of the classes with samples or predictions."""
    text = model_card(opened(**STORED), Card("me/tench"), "timm")
    assert rows(text) == [
        ["class", "training images", "validation images", "recall, %", "precision, %", "F1, %"],
        ["---", *["---:"] * 5],
        ["class_0", "700", "4", "50.0", "100.0", "66.7"],
        ["class_1", "800", "1", "100.0", "100.0", "100.0"],
        ["tench", "900", "0", "", "0.0", "0.0"],
    ]
    assert "top-1 accuracy 60.00%, macro F1 55.56%" in text
    assert "Trained on 2,400 images; 64 per update; torch 2.9." in text
    results = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    found = {metric["type"]: metric["value"] for each in results for metric in each["metrics"]}
    assert found == {"accuracy": 60.0, "f1": 55.556}


def test_without_results_classes_are_listed(opened):
    text = model_card(opened(), Card("me/tench"))
    assert "class_0, class_1, tench" in text and not rows(text)
    assert "validation" not in text and "import timm" not in text and "Trained on" not in text


def test_only_keys_that_differ_from_their_defaults_are_listed(opened, tmp_path):
    """They are a recipe: nothing that would change the result is missing."""
    own = opened()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(own)))
    again = load_config(tmp_path / "recipe.yaml")
    assert again.MODEL.SWIN == own.cfg.MODEL.SWIN and again.AUG == own.cfg.AUG
    assert again.TRAIN.BASE_LR == own.cfg.TRAIN.BASE_LR and again.MODEL.DROP_PATH_RATE == own.cfg.MODEL.DROP_PATH_RATE
    text = yaml.safe_dump(recipe(own))
    assert text.count("\n") < 30 and "SWINV2" not in text and "NUM_WORKERS" not in text


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_the_code_for_timm_predicts_as_this_program_does(opened, made, photos, tmp_path, monkeypatch, exif):
    """A photograph on its side, in float32."""
    config = torch.load(made[0] / "model.pth")["config"].replace("AMP_ENABLE: true", "AMP_ENABLE: false")
    own = opened(config=config.replace("EXIF: apply", f"EXIF: {exif}"), calibration={"temperature": 0.5})
    write_folder(own, tmp_path / "hub", Card("me/tench"))
    text = (tmp_path / "hub/README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert ("exif_transpose" in code) == (exif == "apply")
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(next((photos / "val/class_1").iterdir())) as photo:
        photo.save(tmp_path / "photo.jpg", exif=turned, quality=95)
    monkeypatch.chdir(tmp_path)
    create, printed = timm.create_model, io.StringIO()
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(f"local-dir:{tmp_path / 'hub'}", **more))
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    found = [line.rsplit(" ", 1) for line in printed.getvalue().splitlines()]
    (expected,) = predictions(own, FoundImages([tmp_path / "photo.jpg"], {}, []), 3)
    words = [{"tench": "n01440764"}.get(name, name) for name in expected.record["classes"]]
    assert [name for name, _ in found] == words
    shown = [float(probability.rstrip("%")) for _, probability in found]
    assert shown == pytest.approx([100 * each for each in expected.record["probabilities"]], abs=0.2)
