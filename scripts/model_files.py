"""Opens a model from its file alone: weights with the configuration they store, or an exported model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo
from torch import nn
from yacs.config import CfgNode

from configs.loading import find_config, load_config, load_stored_config
from models.backbone import PyramidOptions
from models.registry import build, model_options, preprocessing_of
from models.weights.class_maps import CLASSES_1K
from models.weights.load import find_weights, load_contents
from models.weights.released import released_url
from utils.checkpoints.downloads import read_weights
from utils.errors import CheckpointError, ConfigError
from utils.preprocessing import Preprocessing, Size, image_size

Overrides = Sequence[tuple[str, Any, str]]


@dataclass(frozen=True)
class ModelFile:
    """A model in evaluation mode and what images it takes: `size` in pixels, `channels`, `preprocessing`.

    `model` maps (B, C, H, W) to logits (B, classes); `class_names` in label order; `cfg`: its configuration; `versions`
    of the libraries that wrote it, and `top1`, its accuracy in percent on the validation images, if it says so.
    """

    model: nn.Module
    class_names: tuple[str, ...]
    cfg: CfgNode
    preprocessing: Preprocessing
    channels: int
    versions: Mapping[str, str] = field(default_factory=dict)
    top1: float | None = None

    @property
    def size(self) -> Size:
        return image_size(self.cfg.TEST.IMG_SIZE or self.cfg.DATA.IMG_SIZE)


def open_model(name: str, cfg: str = "", overrides: Overrides = ()) -> ModelFile:
    """Opens a model that was trained, released or exported.

    Args: name: a checkpoint, the folder of a run for its best one, a URL, "hub:<released model>", "hf:<repository>",
    an exported .onnx or .pt2 file; cfg: the recipe, for weights that do not store one; overrides: further keys.
    Raises: CheckpointError, ConfigError.
    """
    if Path(name).suffix in (".onnx", ".pt2"):
        from scripts.exported import open_exported

        model, notes = open_exported(Path(name))
        own = load_stored_config(notes["config"], name, overrides)
        preprocessing = Preprocessing.stored(notes)
        assert preprocessing is not None
        return ModelFile(model, tuple(notes["class_names"]), own, preprocessing, notes["channels"])
    best = Path(name) / "checkpoints" / "best.pth"  # of a run's folder
    name = str(best) if best.exists() else name
    contents = read_weights(name, released_url=released_url)
    own = _config_of(contents, name, cfg, overrides)
    options = model_options(own)
    classes = _classes_of(contents, name) if isinstance(options, PyramidOptions) else 0
    names = class_names_of(contents, classes or own.MODEL.NUM_CLASSES or CLASSES_1K)
    options = replace(options, num_classes=len(names))
    model = build(options)
    load_contents(model, contents, name)
    stored = Preprocessing.stored(contents) or preprocessing_of(options)
    preprocessing, versions = stored.configured(own, options.in_chans), contents.get("versions") or {}
    top1 = _top1_of(contents)
    return ModelFile(model.eval(), names, own, preprocessing, options.in_chans, versions, top1)


def _config_of(contents: Mapping[str, Any], name: str, cfg: str, overrides: Overrides) -> CfgNode:
    if cfg:
        return load_config(cfg, overrides)
    kind, _, recipe = name.partition(":")
    if kind == "hub":
        return load_config(find_config(recipe), overrides)
    if not isinstance(contents.get("config"), str):
        raise ConfigError(f"the file does not say which model it is of: {name}: name its recipe with --cfg")
    # the run that wrote it may have been stopped while its warm-up was longer than its training
    return load_stored_config(contents["config"], name, [("TRAIN.WARMUP_EPOCHS", 0, name), *overrides])


def _classes_of(contents: Mapping[str, Any], name: str) -> int:
    classes = find_weights(contents, name).classes
    if not classes:
        raise CheckpointError(f"the file has no head: {name}: only a model that was trained to classify can predict")
    return classes


def _top1_of(contents: Mapping[str, Any]) -> float | None:
    """Returns the accuracy of a checkpoint that is the best of its run; of others, it stores only the best one's."""
    best, counters = contents.get("best") or {}, contents.get("counters") or {}
    own = not counters.get("step") and best.get("epoch", -1) == counters.get("epoch", 0) - 1
    return best.get("value") if own else None


def class_names_of(contents: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Returns the class names that a file stores, ImageNet-1K's synsets for a head of 1000, else "class 0", ..."""
    names = contents.get("class_names")
    if isinstance(names, list) and len(names) == classes:
        return tuple(names)
    if classes == CLASSES_1K:
        return tuple(ImageNetInfo("imagenet-1k").label_names())
    return tuple(f"class {i}" for i in range(classes))
