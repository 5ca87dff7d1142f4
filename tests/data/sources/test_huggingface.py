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
from datasets import ClassLabel, Dataset, Features, Image, Value
from data.sources.open import SourceOptions
from data.sources.table import Columns
from tasks.classification.labels import open_val
from tests.tools.builders import labels_of, open_data
from utils.distributed.world import World
from utils.errors import DataError
name = "timm:hfds/" + sys.argv[1]
sources = open_data(name, "")
for source in (sources.train, pickle.loads(pickle.dumps(sources.val))):
    for i in range(len(source)):
        print(source.label(i), hashlib.sha256(source[i].data).hexdigest())
val = open_val(SourceOptions(name, ""), World(), sources.class_names)
print("val", len(val), *val.class_names)
def refused(act):
    try:
        act()
    except DataError as error:
        print(error)


def open_other(*columns):
    return open_data("timm:hfds/" + sys.argv[2], "", validate=False, columns=Columns(*columns)).train


refused(lambda: open_data("timm:hfds/nobody/nothing", ""))
# a data set whose columns have other names; an image and a label are missing
photo, kinds = {"bytes": sources.train[0].data, "path": None}, ClassLabel(names=["cat", "dog"])
columns = {"img": Image(), "kind": kinds, "labels": Value("int64"), "text": Value("string"), "missing": kinds}
values = [[photo, None, photo], [1, 0, 1], [1, 0, 1], ["a", "b", "c"], [1, None, 0]]
rows = dict(zip(columns, values))
Dataset.from_dict(rows, Features(columns)).to_parquet(sys.argv[2] + "/train.parquet")
other = open_other("img", "kind")
print(len(other), *other.class_names, labels_of(other), other[2].data == sources.train[0].data)
refused(lambda: other[0])
for columns in (("image", "label"), ("img", "labels"), ("img", "text"), ("img", "gone"), ("img", "missing")):
    refused(lambda: open_other(*columns))
"""


@pytest.fixture(scope="module")
def hub(photos, tmp_path_factory):
    """The photographs in the layout that the package datasets knows, and an environment without a network."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(photos / "train", folder / "photos/train")
    shutil.copytree(photos / "val", folder / "photos/validation")
    return folder / "photos", {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}


@pytest.mark.seconds
def test_samples_of_hugging_face_are_those_of_the_folder(hub, photos, tmp_path):
    folder, env = hub
    done = subprocess.run(
        [sys.executable, "-c", HASHES, folder, tmp_path],
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sources = open_folder(photos)
    expected = [
        f"{source.label(i)} {hashlib.sha256(source[i].data).hexdigest()}"
        for source in (sources.train, sources.val)
        for i in range(len(source))
    ]
    *samples, val, error, other, image, no_image, integers, text, no_label, label = done.stdout.splitlines()
    assert sorted(samples) == sorted(expected)
    assert val == "val 15 class_0 class_1 class_2"  # as an evaluation opens it
    assert error.startswith("DATA.DATASET: ") and "timm:hfds/nobody/nothing is not in the cache" in error
    assert other == "3 cat dog [0, 1, 1] True"
    assert image.startswith(f"hfds/{tmp_path}/train[1]: the image cannot be read")
    assert no_image.startswith("DATA.IMAGE_COLUMN: no column 'image'") and "img, kind, labels, text" in no_image
    assert no_label.startswith("DATA.LABEL_COLUMN: no column 'gone'") and "img, kind, labels, text" in no_label
    for line, column in ((integers, "labels"), (text, "text")):
        assert line.startswith("DATA.LABEL_COLUMN: ") and repr(column) in line and "kind, missing" in line
    assert label.startswith(f"hfds/{tmp_path}/train[1]: the label cannot be read")


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
