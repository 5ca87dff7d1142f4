"""Data sets of the Hugging Face hub, from a local one in its layout."""

import hashlib
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment, run_program
from tests.tools.builders import open_data, open_folder
from tests.tools.errors import raises
from utils.errors import DataError

HASHES = """
import hashlib, pickle, sys
from data.sources.open import SourceOptions
from tasks.classification.labels import open_val
from tests.tools.builders import open_data
from utils.distributed.world import World
from utils.errors import DataError
name = "timm:hfds/" + sys.argv[1]
sources = open_data(name, "")
for source in (sources.train, pickle.loads(pickle.dumps(sources.val))):
    for i in range(len(source)):
        print(source.label(i), hashlib.sha256(source[i].data).hexdigest())
val = open_val(SourceOptions(name, ""), World(), sources.class_names)
print("val", len(val), *val.class_names)
try:
    open_data("timm:hfds/nobody/nothing", "")
except DataError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def hub(photos, tmp_path_factory):
    """The photographs in the layout that the package datasets knows, and an environment without a network."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(photos / "train", folder / "photos/train")
    shutil.copytree(photos / "val", folder / "photos/validation")
    return folder / "photos", {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}


def test_samples_of_hugging_face_are_those_of_the_folder(hub, photos):
    folder, env = hub
    done = subprocess.run(
        [sys.executable, "-c", HASHES, folder], cwd=ROOT, env=environment(**env), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sources = open_folder(photos)
    expected = [
        f"{source.label(i)} {hashlib.sha256(source[i].data).hexdigest()}"
        for source in (sources.train, sources.val)
        for i in range(len(source))
    ]
    *samples, val, error = done.stdout.splitlines()
    assert sorted(samples) == sorted(expected)
    assert val == "val 15 class_0 class_1 class_2"  # as an evaluation opens it
    assert error.startswith("DATA.DATASET: ") and "train of timm:hfds/nobody/nothing" in error


@pytest.mark.slow
def test_a_data_set_of_hugging_face_trains(hub, tiny_yaml, tmp_path):
    folder, env = hub
    common = ["--cfg", tiny_yaml, "--output", tmp_path]
    options = ["--opts", "DATA.DATASET", f"timm:hfds/{folder}", "DATA.NUM_WORKERS", 2, "TRAIN.EPOCHS", 1]
    done = run_program(*common, *options, fresh=True, **env)
    assert done.code == 0, done.err
    assert "36 training and 15 validation samples, 3 classes" in done.out and "of 15)" in done.out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:wds/a", "DATA.DATASET tar"),
        ("timm:tfds/cifar10", "stream"),
        ("timm:hfids/a", "hfds/"),
        ("timm:", "timm:hfds/"),
        ("timm:torch/cifar10", "timm:hfds/"),
    ],
)
def test_streams_and_unknown_readers_are_refused(name, expected):
    with raises(DataError, "DATA.DATASET", name, expected):
        open_data(name, "")
