"""Builds a model from the contents of its file: architecture, weights, class names, preprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from timm.data import ImageNetInfo
from torch import nn
from yacs.config import CfgNode

from models.backbone import PyramidOptions
from models.registry import build, model_options, preprocessing_of
from models.weights.class_maps import CLASSES_1K
from models.weights.load import find_weights, load_contents
from utils.errors import CheckpointError
from utils.preprocessing import Preprocessing, Size, image_size


@dataclass(frozen=True)
class StoredModel:
    """A model in evaluation mode, and what images it takes: `size` in pixels, `channels`, `preprocessing`.

    `class_names` in label order; `loaded`: a log line about its weights.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    channels: int
    size: Size
    loaded: str


def stored_model(contents: Mapping[str, Any], cfg: CfgNode, origin: str) -> StoredModel:
    """Builds the model that `cfg` describes, with the weights and as many classes as in the file.

    Args: contents of the file `origin`. Raises: CheckpointError, ConfigError.
    """
    options = model_options(cfg)
    classes = _classes_of(contents, origin) if isinstance(options, PyramidOptions) else 0
    stored_names = contents.get("class_names") or ()
    names = class_names_of(contents, classes or cfg.MODEL.NUM_CLASSES or len(stored_names) or CLASSES_1K)
    if isinstance(options, PyramidOptions):
        options = replace(options, attention="auto")  # the form is a matter of the machine
    model = build(replace(options, num_classes=len(names)))
    loaded = load_contents(model, contents, origin)
    preprocessing = Preprocessing.stored(contents) or preprocessing_of(options)
    size = image_size(cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE)
    own = preprocessing.configured(cfg, options.in_chans)
    return StoredModel(model.eval(), names, own, options.in_chans, size, loaded)


def _classes_of(contents: Mapping[str, Any], origin: str) -> int:
    classes = find_weights(contents, origin).classes
    if not classes:
        raise CheckpointError(f"the file has no head: {origin}: only a model that was trained to classify can predict")
    return classes


def class_names_of(contents: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Returns the class names that a file stores, ImageNet-1K's synsets for a head of 1000, else "class 0", ..."""
    names = contents.get("class_names")
    if isinstance(names, list) and len(names) == classes:
        return tuple(names)
    if classes == CLASSES_1K:
        return tuple(ImageNetInfo("imagenet-1k").label_names())
    return tuple(f"class {i}" for i in range(classes))
