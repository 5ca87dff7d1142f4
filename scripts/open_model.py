"""Models opened from a single file: weights with their stored configuration, or an exported model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from configs.loading import config_of_weights, load_stored_config
from tasks.base import Task
from tasks.registry import new_task
from utils.checkpoints.downloads import best_in, read_weights
from utils.distributed.world import World
from utils.errors import ConfigError
from utils.preprocessing import Preprocessing, Size
from utils.runs.provenance import DataInfo

EXPORTED = (".onnx", ".pt2")
Overrides = Sequence[tuple[str, Any, str]]


@dataclass(frozen=True)
class ModelFile:
    """A model in evaluation mode with its task, and `info` about its data.

    `versions`: library versions, empty if not stored; `best`: the metric on the validation split, None if not stored.
    """

    model: nn.Module
    task: Task
    info: DataInfo
    versions: Mapping[str, str] = field(default_factory=dict)
    best: float | None = None
    exported: bool = False

    @property
    def cfg(self) -> CfgNode:
        return self.task.cfg

    @property
    def preprocessing(self) -> Preprocessing:
        return self.task.preprocessing

    @property
    def channels(self) -> int:
        return self.task.options.in_chans

    @property
    def size(self) -> Size:
        """Height and width of the model's input in pixels."""
        return self.task.input_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order; empty if the model does not predict classes."""
        return getattr(self.info, "class_names", ())


def open_model(name: str, cfg: str = "", overrides: Overrides = (), world: World | None = None) -> ModelFile:
    """Opens a trained, released or exported model on the device of `world`.

    Args: name: a checkpoint, the folder of a run (its best checkpoint), a URL, "hub:<released model>",
    "hf:<repository>", an exported .onnx or .pt2 file; cfg: the recipe, for weights that do not store one; overrides:
    further keys.
    Raises: CheckpointError, ConfigError.
    """
    world = world or World()
    if name.endswith(EXPORTED):
        return _open_exported(name, overrides, world)
    name = best_in(name)
    contents = read_weights(name)
    # the attention implementation depends on the machine
    own = config_of_weights(contents, name, cfg, [("MODEL.ATTENTION", "auto", name), *overrides])
    task = new_task(own, world, contents)
    info = task.stored_info(name)
    model = task.new_model(info)
    task.load(model, contents, name)
    model = model.to(world.device).eval()
    return ModelFile(model, task, info, contents.get("versions") or {}, _best_of(contents))


def _open_exported(name: str, overrides: Overrides, world: World) -> ModelFile:
    from scripts.exported_model import open_exported

    model, notes = open_exported(Path(name))
    task = new_task(load_stored_config(notes["config"], name, overrides), world, {**notes, "exported": True})
    opened = ModelFile(model, task, task.stored_info(name), exported=True)
    fixed = new_task(load_stored_config(notes["config"], name), world, notes)
    if opened.size != fixed.input_size:
        asked = fixed.cfg.TEST.IMG_SIZE
        taken = f"--size {asked}" if asked else f"the size of training ({'x'.join(map(str, fixed.input_size))})"
        raise ConfigError(name, f"was exported with {taken}", "leave out --size, or export another file")
    return opened


def _best_of(contents: Mapping[str, Any]) -> float | None:
    """Returns the metric of a checkpoint if it is the best of its run; others store only that of the best one."""
    best, counters = contents.get("best") or {}, contents.get("counters") or {}
    epoch, step = counters.get("epoch", 0), counters.get("step", 0)
    own = (best.get("epoch", -1), best.get("step", 0)) == ((epoch, step) if step else (epoch - 1, 0))
    return best.get("value") if own else None
