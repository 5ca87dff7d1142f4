"""What a checkpoint must share with the run that resumes it."""

import json
from pathlib import Path

import pytest
import torch

from tasks.classification.labels import ClassInfo
from tests.tools.builders import provenance
from tests.tools.errors import raises
from utils.errors import CheckpointError, ConfigError
from utils.preprocessing import Preprocessing
from utils.runs.provenance import versions

HERE = Path("ckpt.pth")
OWN = provenance(info=ClassInfo("x", ("a", "b"), (3, 4)), preprocessing=Preprocessing())


def test_a_checkpoint_holds_plain_values():
    saved = OWN.as_dict()
    assert saved["class_names"] == ["a", "b"] and saved["preprocessing"]["crop_pct"] == 0.875
    assert saved["versions"]["torch"] == torch.__version__ and versions().keys() >= {"python", "timm", "pillow"}
    OWN.check(saved, HERE, accept_changes=False)
    OWN.check({}, HERE, accept_changes=False)  # what a file does not say is not compared


def test_fault_10_other_classes_are_refused():
    with pytest.raises(CheckpointError, match="class 1 is c in the checkpoint and b in the data"):
        OWN.check({"class_names": ["a", "c"]}, HERE, accept_changes=False)


def test_fault_32_another_global_batch_is_refused():
    with raises(ConfigError, "TRAIN.GLOBAL_BATCH_SIZE", HERE, 4, "to 8"):
        OWN.check({"global_batch": 8}, HERE, accept_changes=False)


@pytest.mark.parametrize(
    ("counts", "difference"), [([3, 5], "class b had 5 files, now 4"), ([3, 4], "the file names differ")]
)
def test_fault_50_changed_samples_are_refused_or_accepted(counts, difference, caplog):
    saved = {"data_fingerprint": "y", "data_counts": counts}
    with raises(CheckpointError, "DATA.DATA_PATH", HERE, difference, "DATA.ACCEPT_CHANGES"):
        OWN.check(saved, HERE, accept_changes=False)
    OWN.check(saved, HERE, accept_changes=True)
    assert difference in caplog.text


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (["a"], "has 1 classes, the data 2; class 1 is none in the checkpoint and b in the data"),
        (["a", "b", "c"], "has 3 classes, the data 2; class 2 is c in the checkpoint and none in the data"),
    ],
)
def test_another_number_of_classes_is_refused(names, difference):
    with pytest.raises(CheckpointError) as caught:
        OWN.check({"class_names": names}, HERE, accept_changes=True)
    assert difference in caught.value.problem and "--pretrained" in caught.value.remedy


def test_the_values_survive_json():
    assert json.loads(json.dumps(OWN.as_dict())) == OWN.as_dict()
    assert provenance().as_dict()["preprocessing"] is None
