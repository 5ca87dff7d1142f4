"""The commands of the documentation, run as they are printed, in order, on small data and with small models."""

import functools
import hashlib
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import main as program
from configs import loading
from models.registry import build, model_options
from tests.conftest import ROOT
from tests.data.sources.storages import as_22k_list
from tests.test_docs import commands
from tests.tools.builders import write_photos
from utils.checkpoints.released import released_url
from utils.runs import throughput

PROGRAMS = {"python", "torchrun", "bash"}
# run by tests of their own, or only with a second machine, a scheduler, the hub
ELSEWHERE = {
    "scripts/quickstart.sh": "tests/scripts/test_quickstart.py",
    "scripts/benchmark.py": "tests/scripts/benchmarks/test_model.py",
    "tests/tools/soak.py": "tests/test_survival.py",
    "scripts/test.sh": "tests/test_commands.py",
    "scripts/two_hosts.sh": "tests/test_distributed.py",
}
SIZES = {"EMBED_DIM": 8, "DEPTHS": [1, 1], "NUM_HEADS": [1, 2], "WINDOW_SIZE": 4}
SHORT = {"EPOCHS": 2, "WARMUP_EPOCHS": 1}
FEW = {"TRAIN.EPOCHS": "2", "--epochs": "2", "TRAIN.WARMUP_EPOCHS": "1", "--warmup-epochs": "1"}


@pytest.fixture
def small_recipes(tmp_path, monkeypatch):
    """The recipes under their names, with models and images of a few pixels."""
    folder = tmp_path / "program/configs"
    for file in (ROOT / "configs").rglob("*.yaml"):
        recipe = yaml.safe_load(file.read_text())
        group = recipe.get("MODEL", {}).get("TYPE", "swin").upper()
        if "BASE" not in recipe:
            own = recipe.setdefault("MODEL", {}).setdefault(group, {})
            own.update(SIZES)
            own.pop("PRETRAINED_WINDOW_SIZES", None)
            own.pop("MOE_BLOCKS", None)
            recipe.setdefault("DATA", {}).update(IMG_SIZE=32, NUM_WORKERS=0)
            recipe.setdefault("TRAIN", {}).update(SHORT)
        if recipe.get("TRAIN", {}).get("EPOCHS") == "auto":
            recipe["TRAIN"].update(SHORT)
        target = folder / file.relative_to(ROOT / "configs")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(loading, "CONFIGS", folder)


@pytest.fixture
def workspace(tmp_path, monkeypatch, small_recipes):
    """The files that the commands name."""
    folder = tmp_path / "work"
    write_photos(folder / "photographs", classes=3, train=4, val=2)
    as_22k_list(folder / "photographs", folder / "22k")
    for split in ("train", "val"):
        for digit in range(10):
            source = folder / "photographs" / split / f"class_{digit % 3}"
            shutil.copytree(source, folder / "datasets/digits" / split / str(digit))
    shutil.copytree(folder / "photographs/val/class_0", folder / "photos")
    shutil.copytree(folder / "photographs/train", folder / "by_class")
    write_streets(folder / "streets")
    rows = [f"{path},{path.parent.name}; all" for path in sorted((folder / "by_class").rglob("*.jpg"))]
    (folder / "labels.csv").write_text("\n".join(["path,labels", *rows]))
    shutil.copy(folder / "photos/photo_0.jpg", folder / "photo.jpg")
    hub = tmp_path / "hub/checkpoints"
    hub.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name, classes in (
        ("swin_tiny_patch4_window7_224", 1000),
        ("swin_tiny_patch4_window7_224_22k", 21841),
        ("swinv2_tiny_patch4_window8_256", 1000),
    ):
        url = released_url(name)
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        save_weights(hub / f"{Path(url).stem}-{digest}.pth", name, classes)
    save_weights(folder / "IN.pth", "swin_tiny", 1000)
    monkeypatch.chdir(folder)
    return folder


def write_streets(folder):
    """Images with label maps, of which value 11 has no class."""
    labels = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) % 12
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            for name, pixels in (("images", np.stack([labels * 20 + i] * 3, 2)), ("labels", labels)):
                (folder / name / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / name / split / f"{i}.png")


def save_weights(path, recipe, classes):
    model = build(model_options(loading.load_config(loading.find_config(recipe))), classes)
    torch.save({"model": model.state_dict()}, path)


def run(words):
    """Runs one command in this process; returns its exit code."""
    script = next(word for word in words if word.endswith((".py", ".sh")))
    arguments = words[words.index(script) + 1 :]
    if script == "main.py":
        return program.main(arguments)
    if script == "scripts/push_to_hub.py" and "--folder" not in arguments:
        arguments += ["--folder", "published"]  # tests/scripts/test_push_to_hub.py uploads
    return importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pages", "file_of"),
    [
        (["README.md"], "swin_tiny"),
        ([f"docs/{name}.md" for name in ("train", "data", "evaluate", "deploy", "results")], "swinv2_tiny"),
    ],
    ids=["README", "docs"],
)
def test_the_commands_of_the_pages_run(workspace, capsys, monkeypatch, pages, file_of):
    """Each in this process, whatever number of processes it asks for; later ones use what earlier ones wrote.

    Args: file_of: the recipe that FILE is of.
    """
    monkeypatch.setattr(throughput, "measure_throughput", functools.partial(throughput.measure_throughput, seconds=0.5))
    save_weights(workspace / "FILE", file_of, 1000)
    text = "\n".join((ROOT / page).read_text() for page in pages)
    known = dict(re.findall(r"^(\w+)=(\S+)", text, re.MULTILINE)) | {"imagenet": "photographs", "images": "photographs"}
    known |= {"imagenet22k": "22k", "classes": "by_class", "camvid": "streets"}
    for shell in re.findall(r"^mkdir -p .*?^done$", text, re.MULTILINE | re.DOTALL):
        subprocess.run(["bash", "-c", shell], check=True)
    seen = 0
    for words in [words for page in pages for words in commands(ROOT / page)]:
        assert words[0] in PROGRAMS
        if any(word in ELSEWHERE for word in words):
            continue
        words = [FEW.get(before, word) for before, word in zip([None, *words], words, strict=False)]
        words = [re.sub(r"\$(\w+)|<(\w+)>", lambda match: known[match[1] or match[2]], word) for word in words]
        code = run(words)
        assert code == 0, f"{' '.join(words)}: {code}: {capsys.readouterr().err}"
        seen += 1
    assert seen > 10


def test_what_is_run_elsewhere_is_there():
    assert all((ROOT / script).is_file() and (ROOT / test).is_file() for script, test in ELSEWHERE.items())
