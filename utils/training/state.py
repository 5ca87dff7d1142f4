"""Everything that a training run changes, in one object."""

from collections.abc import Callable
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from utils.distributed import World
from utils.evaluation.metrics import Mean
from utils.precision import Precision
from utils.training.optim import build_optimizer, describe_groups, parameter_groups
from utils.training.plan import RunPlan


class TrainState:
    """Model, optimizer, averaged weights, scaler, counters.

    `model` is the bare model, `parallel` the same model as it trains (wrapped for several processes). Counters:
    `epoch` and `step` (updates done in it) say where the data stands; `update` counts the updates of the whole run,
    `skipped` those among them whose gradient was not finite, which move neither weights nor schedule.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        world: World,
        precision: Precision,
        ema: ModelEmaV3 | None = None,
    ):
        self.model = model
        self.parallel = world.wrap(model)
        self.optimizer = optimizer
        self.precision = precision
        self.scaler = precision.scaler()
        self.ema = ema
        self.epoch = 0
        self.step = 0
        self.update = 0
        self.skipped = 0
        self.skipped_in_row = 0
        self.samples = 0
        self.best_top1 = -1.0
        self.best_epoch = -1
        # means of the running epoch and log interval: saved, so that a resumed run logs the same numbers
        self.means = {name: Mean() for name in ("epoch_loss", "loss", "grad_norm")}

    def begin(self, epoch: int, plan: RunPlan) -> None:
        """Start at an epoch other than the first, as if those before had been trained."""
        self.epoch, self.update = epoch, epoch * plan.updates_per_epoch
        self.samples = epoch * plan.samples_per_epoch

    def forget_best(self) -> None:
        """Let the next evaluation be the best so far."""
        self.best_top1, self.best_epoch = -1.0, -1

    def average_from_here(self) -> None:
        """Let the averaged weights start at the model's."""
        if self.ema is None:
            return
        self.ema.set(self.model)
        adopt = getattr(self.ema.module, "adopt_pretrained_windows", None)  # Swin V2: what no tensor tells
        if adopt is not None:
            adopt(self.model.pretrained_windows())  # type: ignore[operator]

    def describe(self) -> list[str]:
        """Lines for the log."""
        size = self.checkpoint_bytes() / 2**20
        average = "" if self.ema is None else f", weights averaged with decay {self.ema.decay}"
        return [
            f"{type(self.optimizer).__name__}, {describe_groups(self.optimizer.param_groups)}",
            f"{self.precision}{average}; a checkpoint takes about {size:,.0f} MiB",
        ]

    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: weights, averaged weights, the optimizer's moments."""
        copies = 1 + (self.ema is not None) + (2 if isinstance(self.optimizer, torch.optim.AdamW) else 1)
        return copies * sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: the averaged ones where there are any."""
        return self.model if self.ema is None else self.ema.module

    _COUNTERS = (
        "epoch",
        "step",
        "update",
        "skipped",
        "skipped_in_row",
        "samples",
        "best_top1",
        "best_epoch",
    )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        averaged = {} if self.ema is None else {"model_ema": self.ema.module.state_dict()}
        windows = getattr(self.model, "pretrained_windows", None)  # Swin V2: what no tensor tells
        return {
            "model": self.model.state_dict(),
            **averaged,
            **({} if windows is None else {"pretrained_windows": windows()}),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": type(self.optimizer).__name__,
            "scaler": self.scaler.state_dict(),
            "counters": {name: getattr(self, name) for name in self._COUNTERS},
            "means": {name: [mean.total, mean.weight] for name, mean in self.means.items()},
        }

    def load_state_dict(self, saved: dict[str, Any], load_weights: Callable[[nn.Module, dict[str, Any]], str]) -> str:
        """Go on from `saved`; returns what `load_weights` says of the model.

        Raises: KeyError, RuntimeError or TypeError if the optimizer, the scaler or a counter does not fit.
        """
        windows = {"pretrained_windows": saved.get("pretrained_windows")}
        line = load_weights(self.model, {"model": saved["model"], **windows})
        if self.ema is not None:
            load_weights(self.ema.module, {"model": saved.get("model_ema", saved["model"]), **windows})
        self._load_optimizer(saved)
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        for name in self._COUNTERS:
            setattr(self, name, saved["counters"][name])
        self.means = {name: Mean(*saved["means"][name]) for name in self.means}
        return line

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Moments from the file; decay, betas and the rest stay as this run has them."""
        name, own = type(self.optimizer).__name__, self.optimizer.state_dict()
        if saved["optimizer_name"] != name:
            raise RuntimeError(f"its optimizer is {saved['optimizer_name']}, this run's {name}")
        sizes = [[len(group["params"]) for group in each["param_groups"]] for each in (own, saved["optimizer"])]
        if sizes[0] != sizes[1]:
            raise RuntimeError(f"its parameter groups have {sizes[1]} tensors, this run's {sizes[0]}")
        self.optimizer.load_state_dict({**own, "state": saved["optimizer"]["state"]})


def new_state(
    model: nn.Module,
    world: World,
    precision: Precision,
    *,
    weight_decay: float,
    layer_decay: float,
    optimizer: dict[str, Any],
    ema: dict[str, Any] | None,
) -> TrainState:
    """State of an untrained run. Args: optimizer: of build_optimizer; ema: of timm's ModelEmaV3, None for none."""
    groups = parameter_groups(model, weight_decay, layer_decay)
    average = None if ema is None else ModelEmaV3(model, **ema)
    return TrainState(model, build_optimizer(groups, **optimizer), world=world, precision=precision, ema=average)
