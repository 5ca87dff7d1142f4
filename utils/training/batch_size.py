"""DATA.BATCH_SIZE auto: the largest micro-batch that the GPUs have memory for."""

import gc
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.batches import Batch
from utils.cost import input_channels
from utils.distributed.world import World
from utils.errors import ConfigError, ResourceError
from utils.precision import Precision
from utils.preprocessing import image_size
from utils.training.loop import train_epoch
from utils.training.plan import RunPlan
from utils.training.state import StateOptions, TrainState

log = logging.getLogger(__name__)
EVALUATED = 128  # images per batch of an evaluation, which takes far less memory
USABLE = 0.92  # of the GPU: stochastic depth and the exchange of gradients take a little more in some updates


def fit_batch_size(cfg: CfgNode, world: World, build: Callable[[CfgNode, torch.device], nn.Module]) -> CfgNode:
    """Returns the configuration with a number for DATA.BATCH_SIZE; one that has a number already, unchanged.

    Divisors of a rank's share of the global batch are tried, each by two updates of a new model, so that the global
    batch stays what it is by accumulation. The rank with the least memory decides.
    Args: build: returns a new model on a device.
    Raises: ConfigError without a GPU or a global batch; ResourceError if a single image is too much.
    """
    if isinstance(cfg.DATA.BATCH_SIZE, int):
        return cfg
    if cfg.EVAL_MODE or cfg.THROUGHPUT_MODE:
        return _with_batch_size(cfg, EVALUATED)
    if world.device.type != "cuda":
        raise ConfigError("a batch that fits into memory is sought on GPUs only: DATA.BATCH_SIZE: set a number")
    share = cfg.TRAIN.GLOBAL_BATCH_SIZE // world.size
    if not share:
        raise ConfigError("the batch of an update decides the learning rate: TRAIN.GLOBAL_BATCH_SIZE: set it, as 1024")
    if world.size > 1 and cfg.MODEL.TYPE == "swin_moe" and cfg.MODEL.SWIN_MOE.NUM_EXPERTS > 1:
        raise ConfigError("the memory of divided experts is not measured: DATA.BATCH_SIZE: set a number")
    log.info("trying how many images fit into the memory of %s", world.device)
    # all branches of all samples: what stochastic depth drops differs from update to update
    trial = Trial(cfg, world, build(_with(cfg, "MODEL", "DROP_PATH_RATE", 0.0), world.device))
    torch.cuda.set_per_process_memory_fraction(USABLE, world.device)
    own = largest_that_fits([size for size in range(1, share + 1) if share % size == 0], trial.run)
    torch.cuda.set_per_process_memory_fraction(1.0, world.device)
    del trial
    _release_memory()
    size = min(world.gather_objects(own))
    if not size:
        raise ResourceError(
            f"the memory of {world.device} is too small for a single image: --use-checkpoint: use it, or a smaller"
            " model or DATA.IMG_SIZE"
        )
    return _with_batch_size(cfg, size)


class Trial:
    """Training of a new model on made-up images, to see what it takes."""

    def __init__(self, cfg: CfgNode, world: World, model: nn.Module) -> None:
        self._cfg, self._world = cfg, world
        self._precision = Precision.from_config(cfg, world.device)
        self._state = TrainState.build(model, StateOptions.from_config(cfg), self._precision, World())

    def run(self, size: int) -> None:
        """Takes two updates: the first makes the optimizer's moments, the second has two micro-batches, so that
        gradients are there beside the activations. Raises: torch.OutOfMemoryError."""
        device, two_updates = self._world.device, 2 * self._cfg.TRAIN.GLOBAL_BATCH_SIZE
        model, sides = self._state.model, image_size(self._cfg.DATA.IMG_SIZE)
        images = torch.zeros(size, input_channels(model), *sides, device=device)
        plan = RunPlan.from_config(_with_batch_size(self._cfg, size), self._world.size, two_updates)
        # what a batch that did not fit has left
        self._state.step, self._state.pending_update, self._state.scaler = 0, None, self._precision.scaler()
        self._state.optimizer.zero_grad(set_to_none=True)
        self._state.optimizer.state.clear()
        batches = [Batch(images, None, 1.0, ends_update=ends) for ends in (True, False, True)]
        train_epoch(self._state, batches, AnyLoss(self._precision), plan, lambda update: None)


class AnyLoss:
    """A loss of whatever a model returns: how much memory a task takes is a matter of its model."""

    best, evaluation_batches = None, 0

    def __init__(self, precision: Precision):
        self._precision = precision

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with self._precision.autocast():
            outputs = model(batch.images)
        return {"loss": outputs.float().square().mean()}

    def evaluate(self, model: nn.Module, limit: int | None = None) -> None:
        return None


def largest_that_fits(sizes: Sequence[int], attempt: Callable[[int], None]) -> int:
    """Returns the largest of the ascending `sizes` for which `attempt` has enough memory, 0 if none."""

    def fails(size: int) -> bool:
        _release_memory()
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            return True
        return False

    count = bisect_left(sizes, True, key=fails)
    return sizes[count - 1] if count else 0


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _with_batch_size(cfg: CfgNode, size: int) -> CfgNode:
    return _with(cfg, "DATA", "BATCH_SIZE", size)


def _with(cfg: CfgNode, group: str, name: str, value: float) -> CfgNode:
    changed = cfg.clone()
    changed.defrost()
    changed[group][name] = value
    changed.freeze()
    return changed
