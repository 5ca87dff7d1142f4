"""The fine-tuning recipe compared with other ways on small datasets."""

import json
from itertools import product

import pytest
from PIL import Image

from scripts.benchmark import main
from scripts.benchmarks import finetune
from tests.conftest import ROOT, run_program


def warm(program, *arguments):
    done = run_program(*arguments, program=ROOT / program)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A recipe for a tiny model, images of two colours, and the weights of a run."""
    root = tmp_path_factory.mktemp("finetune")
    data = root / "colours"
    for split, colour, number in product(("train", "val"), ("red", "blue"), range(6)):
        path = data / split / colour / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(path)
    model = "{EMBED_DIM: 8, DEPTHS: [1, 1], NUM_HEADS: [1, 2], WINDOW_SIZE: 4}"
    text = f"BASE: [{finetune.RECIPE}]\nDATA: {{IMG_SIZE: 32, NUM_WORKERS: 0}}\nMODEL: {{SWIN: {model}}}\n"
    (root / "tiny.yaml").write_text(f"{text}TRAIN: {{EPOCHS: 1, WARMUP_EPOCHS: 0}}\n")
    experiment = finetune.Experiment(root / "tiny.yaml", root / "none", data, seed=0, output=root / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_call", warm)
        assert 0 <= experiment.scratch() <= 100
    (found,) = (root / "out").rglob("last.pth")
    return root / "tiny.yaml", data, found


@pytest.mark.slow
def test_every_way_is_measured_by_seed_and_dataset(weights, tmp_path, capsys, monkeypatch):
    cfg, data, start = weights
    monkeypatch.setattr(finetune, "_call", warm)
    monkeypatch.setitem(finetune.CONTENDERS, "timm's defaults", lambda experiment: 50.0)
    options = ["--weights", str(start), "--cfg", str(cfg), "--seeds", "1", "--json", str(tmp_path / "r.json")]
    named = ["--contenders", "finetune", "linear probe", "timm's defaults"]
    assert main(["finetune", str(data), *options, *named]) == 0
    found = json.loads((tmp_path / "r.json").read_text())["rows"]["colours"]
    assert [len(values) for values in found.values()] == [1, 1, 1]
    assert all(0 <= value <= 100 for values in found.values() for value in values)
    assert "| 50.0 (50.0 to 50.0) |" in capsys.readouterr().out


def test_the_table_has_mean_and_spread():
    text = finetune.table({"photos": {"finetune": [90.0, 92.0], "linear probe": [80.0, 80.0]}})
    assert text.splitlines()[-1] == "| photos | 91.0 (90.0 to 92.0) | 80.0 (80.0 to 80.0) |"


@pytest.mark.seconds
def test_a_run_that_fails_is_named(tmp_path, capfd):
    options = ["--weights", str(tmp_path / "none"), "--seeds", "1", "--contenders", "from scratch"]
    assert main(["finetune", str(tmp_path), *options]) != 0
    error = capfd.readouterr().err
    assert "main.py" in error and "failed" in error and str(tmp_path) in error
