"""The teacher of a distillation: any MODEL.TYPE with the weights of any file."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from configs.loading import config_of_weights
from tasks.base import Task
from utils.checkpoints.broadcast import read_once
from utils.checkpoints.downloads import best_in, read_weights
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError
from utils.preprocessing import Preprocessing, Size, image_size

log = logging.getLogger(__name__)
KEY = "DISTILLATION.WEIGHTS"
AUTO_FORM = ("MODEL.ATTENTION", "auto", "teacher")  # the attention implementation depends on the machine


class Teacher:
    """Maps the images of a student to logits, without gradients; not a module, so it is neither trained nor saved.

    Args: model: in evaluation mode; size: its image size; own, seen: normalisation of the teacher and of the student,
    with the same number of channels.
    """

    def __init__(self, model: nn.Module, size: Size, own: Preprocessing, seen: Preprocessing, device: torch.device):
        self._model, self._size = model.requires_grad_(False).to(device), size
        self._renormalizes = (own.mean, own.std) != (seen.mean, seen.std)
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (seen.mean, seen.std, own.mean, own.std)
        )
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns logits (B, classes). Args: images: float32 (B, C, H, W), normalised for the student, of any size."""
        if self._renormalizes:
            images = images * self._scale + self._shift
        if images.shape[2:] != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        return self._model(images)


def open_teacher(
    cfg: CfgNode,
    new_task: Callable[[CfgNode, Mapping[str, Any]], Task],
    seen: Preprocessing,
    world: World,
    class_names: Sequence[str],
) -> Teacher:
    """Builds the teacher configured by DISTILLATION; the main rank reads its weights and broadcasts them.

    Args: new_task: returns the task for a configuration and the contents of a file; seen: the student's normalisation;
    class_names: the data's, in label order.
    Raises: CheckpointError, ConfigError if classes or channels differ.
    """
    own, name = cfg.DISTILLATION, cfg.DISTILLATION.WEIGHTS
    try:
        contents = read_once(world, lambda: read_weights(best_in(name), sha256=own.SHA256))
        recipe = config_of_weights(contents, name, own.TEACHER, [AUTO_FORM], option="DISTILLATION.TEACHER")
        task = new_task(recipe, contents)
        info = task.stored_info(name)
        model = task.new_model(info).eval()
        loaded = task.load(model, contents, name)
    except CheckpointError as e:
        raise CheckpointError(KEY, f"cannot load the teacher: {e.subject}: {e.problem}", e.remedy) from e
    _check_classes(contents, info.class_names, class_names, name)  # type: ignore[attr-defined]
    channels = task.options.in_chans
    if channels != len(seen.mean):
        problem = f"the teacher takes {channels} channels, the student {len(seen.mean)}"
        raise ConfigError(KEY, problem, "name another teacher")
    height, width = size = image_size(recipe.TEST.IMG_SIZE or recipe.DATA.IMG_SIZE)
    log.info("teacher: %s, %s, at %dx%d pixels", type(model).__name__, loaded, height, width)
    return Teacher(model, size, task.preprocessing, seen, world.device)


def _check_classes(contents: Mapping[str, Any], theirs: Sequence[str], class_names: Sequence[str], origin: str) -> None:
    """Compares the classes of teacher and data, by name if the file stores names."""
    remedy = f"set {KEY} to a teacher trained on the same classes"
    if len(theirs) != len(class_names):
        raise CheckpointError(origin, f"the teacher has {len(theirs)} classes, the data {len(class_names)}", remedy)
    if not isinstance(contents.get("class_names"), list):
        return
    for label, (name, own) in enumerate(zip(theirs, class_names, strict=True)):
        if name != own:
            raise CheckpointError(origin, f"class {label} is {name} for the teacher, {own} in the data", remedy)
