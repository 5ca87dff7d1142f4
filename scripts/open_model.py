"""Opens a model from its file alone: weights with the configuration they store, or an exported model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from configs.loading import config_of_weights, load_stored_config
from models.weights.model_file import stored_model
from utils.checkpoints.downloads import best_in, read_weights
from utils.checkpoints.released import released_url
from utils.errors import ConfigError
from utils.preprocessing import Preprocessing, Size, image_size

EXPORTED = (".onnx", ".pt2")
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
    exported: bool = False

    @property
    def size(self) -> Size:
        return image_size(self.cfg.TEST.IMG_SIZE or self.cfg.DATA.IMG_SIZE)


def open_model(name: str, cfg: str = "", overrides: Overrides = ()) -> ModelFile:
    """Opens a model that was trained, released or exported.

    Args: name: a checkpoint, the folder of a run for its best one, a URL, "hub:<released model>", "hf:<repository>",
    an exported .onnx or .pt2 file; cfg: the recipe, for weights that do not store one; overrides: further keys.
    Raises: CheckpointError, ConfigError.
    """
    if name.endswith(EXPORTED):
        from scripts.exported_model import open_exported

        model, notes = open_exported(Path(name))
        own = load_stored_config(notes["config"], name, overrides)
        preprocessing = Preprocessing.stored(notes)
        assert preprocessing is not None
        opened = ModelFile(model, tuple(notes["class_names"]), own, preprocessing, notes["channels"], exported=True)
        fixed = replace(opened, cfg=load_stored_config(notes["config"], name)).size
        if opened.size != fixed:
            taken = "x".join(map(str, fixed))
            raise ConfigError(f"the file takes images of {taken} only: {name}: use that size, or export another file")
        return opened
    name = best_in(name)
    contents = read_weights(name, released_url=released_url)
    own = config_of_weights(contents, name, cfg, overrides)
    stored = stored_model(contents, own, name)
    names, preprocessing, channels = stored.class_names, stored.preprocessing, stored.channels
    versions = contents.get("versions") or {}
    return ModelFile(stored.model, names, own, preprocessing, channels, versions, _top1_of(contents))


def _top1_of(contents: Mapping[str, Any]) -> float | None:
    """Returns the accuracy of a checkpoint that is the best of its run; of others, it stores only the best one's."""
    best, counters = contents.get("best") or {}, contents.get("counters") or {}
    own = not counters.get("step") and best.get("epoch", -1) == counters.get("epoch", 0) - 1
    return best.get("value") if own else None
