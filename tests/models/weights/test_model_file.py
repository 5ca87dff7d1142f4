"""A model from the contents of its file and a configuration."""

import pytest
import torch

from models.registry import build, model_options
from models.weights.class_maps import CLASSES_1K
from models.weights.model_file import class_names_of, stored_model
from tests.tools.builders import configured
from utils.errors import CheckpointError
from utils.preprocessing import IMAGENET_MEAN, Preprocessing

TIMM = {"MODEL__TYPE": "timm", "MODEL__TIMM__NAME": "test_convnext", "DATA__IMG_SIZE": 32}


def contents_of(cfg, classes, **more):
    return {"model": build(model_options(cfg), classes).state_dict(), **more}


def test_the_model_has_the_classes_and_the_preprocessing_of_its_file(tiny_yaml):
    cfg, own = configured(tiny_yaml, TEST__IMG_SIZE=48), Preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    contents = contents_of(cfg, 3, class_names=["a", "b", "c"], preprocessing=own.as_dict())
    stored = stored_model(contents, cfg, "FILE")
    assert (stored.class_names, stored.channels, stored.size) == (("a", "b", "c"), 3, (48, 48))
    assert (stored.preprocessing.mean, stored.preprocessing.std) == (own.mean, own.std)
    assert not stored.model.training and stored.model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    assert all(torch.equal(value, contents["model"][name]) for name, value in stored.model.state_dict().items())
    assert "tensors from FILE" in stored.loaded


def test_a_file_without_names_or_preprocessing(tiny_yaml):
    cfg = configured(tiny_yaml)
    stored = stored_model(contents_of(cfg, 2), cfg, "FILE")
    assert stored.class_names == ("class 0", "class 1") and stored.preprocessing.mean == IMAGENET_MEAN


def test_the_form_of_attention_is_that_of_the_machine_not_of_the_training(tiny_yaml):
    cfg = configured(tiny_yaml, MODEL__ATTENTION="kernel")
    assert stored_model(contents_of(cfg, 2), cfg, "FILE").model.options.attention == "auto"


def test_a_model_of_timm_has_as_many_classes_as_names():
    cfg = configured(**TIMM)
    stored = stored_model(contents_of(cfg, 2, class_names=["cat", "dog"]), cfg, "FILE")
    assert stored.class_names == ("cat", "dog") and stored.model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_a_file_without_a_head_is_rejected(tiny_yaml):
    cfg = configured(tiny_yaml)
    contents = contents_of(cfg, 2)
    contents["model"] = {name: value for name, value in contents["model"].items() if not name.startswith("head.")}
    with pytest.raises(CheckpointError, match="the file has no head: FILE"):
        stored_model(contents, cfg, "FILE")


def test_names_of_classes():
    assert class_names_of({"class_names": ["a", "b"]}, 2) == ("a", "b")
    assert class_names_of({"class_names": ["a", "b"]}, 3) == ("class 0", "class 1", "class 2")
    assert class_names_of({}, CLASSES_1K)[0] == "n01440764"
