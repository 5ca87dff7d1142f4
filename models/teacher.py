"""The teacher of a distillation: any model of MODEL.TYPE with the weights of any file."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from models.weights.model_file import StoredModel, stored_model
from utils.checkpoints.broadcast import read_once
from utils.checkpoints.downloads import best_in, read_weights
from utils.checkpoints.released import released_url
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError
from utils.preprocessing import Preprocessing

log = logging.getLogger(__name__)


class Teacher:
    """Maps the images of a student to logits, without gradients; no module, so that nothing trains or saves it.

    Args: stored: the model; seen: how the images are normalised for the student, with as many channels.
    """

    def __init__(self, stored: StoredModel, seen: Preprocessing, device: torch.device):
        self._model, self._size = stored.model.requires_grad_(False).to(device), stored.size
        own = stored.preprocessing
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
    config_of_weights: Callable[..., CfgNode],
    seen: Preprocessing,
    world: World,
    class_names: Sequence[str],
) -> Teacher:
    """Builds the teacher that DISTILLATION describes. The main rank reads its weights for all.

    Args: config_of_weights: see configs/loading.py; seen: how the student's images are normalised; class_names of the
    data, in label order.
    Raises: CheckpointError, ConfigError if it has other classes or channels.
    """
    own = cfg.DISTILLATION
    name = own.WEIGHTS
    read = partial(read_weights, released_url=released_url, sha256=own.SHA256)
    try:
        contents = read_once(world, lambda: read(best_in(name)))
        recipe = config_of_weights(contents, name, own.TEACHER, option="DISTILLATION.TEACHER")
        stored = stored_model(contents, recipe, name)
    except CheckpointError as e:
        raise CheckpointError(f"no teacher: DISTILLATION.WEIGHTS {name}: {e}") from e
    _check_classes(contents, stored, class_names, name)
    if stored.channels != len(seen.mean):
        raise ConfigError(
            f"the teacher takes {stored.channels} channels, the student {len(seen.mean)}: DISTILLATION.WEIGHTS: name"
            " another teacher"
        )
    height, width = stored.size
    log.info("teacher: %s, %s, at %dx%d pixels", type(stored.model).__name__, stored.loaded, height, width)
    return Teacher(stored, seen, world.device)


def _check_classes(contents: Mapping[str, Any], stored: StoredModel, class_names: Sequence[str], origin: str) -> None:
    """Checks that the logits are for the classes of the data, by name if the file stores names."""
    remedy = "DISTILLATION.WEIGHTS: name a teacher that was trained on the same classes"
    if len(stored.class_names) != len(class_names):
        raise CheckpointError(
            f"the teacher has {len(stored.class_names)} classes, the data {len(class_names)}: {origin}: {remedy}"
        )
    if not isinstance(contents.get("class_names"), list):
        return
    for label, (theirs, own) in enumerate(zip(stored.class_names, class_names, strict=True)):
        if theirs != own:
            raise CheckpointError(f"class {label} is {theirs} for the teacher, {own} in the data: {origin}: {remedy}")
