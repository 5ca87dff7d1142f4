"""The mutable state of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from timm.optim import Lamb
from timm.utils import ModelEmaV3
from torch import nn
from yacs.config import CfgNode

from utils.distributed.sharding import ExpertShard, own_moments, shards_of, whole_moments, whole_tensors
from utils.distributed.world import World
from utils.errors import ConfigError
from utils.precision import Precision
from utils.terminal import log_lines
from utils.training.optim import (
    OptimizerOptions,
    build_optimizer,
    describe_groups,
    parameter_groups,
    slow_backbone,
)
from utils.training.parallel import ParallelOptions, changing_buffers, describe_parallel, shard, wrap
from utils.training.plan import RunPlan
from utils.training.update import Update


@dataclass
class Mean:
    """A running mean, stored as sum and weight so that it can be saved and resumed."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.total += value * weight
        self.weight += weight

    def clear(self) -> None:
        self.total = self.weight = 0.0

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else float("nan")


_BASE_MEANS = ("epoch_loss", "loss", "grad_norm")
_COUNTERS = (
    *("epoch", "step", "update", "skipped", "skipped_in_row", "samples", "evaluated_at"),
    *("stale", "stale_since_decay", "decays"),
)


class Load(Protocol):
    """Loads the contents of a file into a model and returns a log line. Raises: CheckpointError.

    Given `info` on the training data, parts that belong to other data may be re-initialised; otherwise all must match.
    """

    def __call__(self, model: nn.Module, contents: dict[str, Any], origin: str, info: Any = None) -> str: ...


@dataclass(frozen=True)
class StateOptions:
    """The optimizer, the exponential moving average of the weights (`ema_decay` None for none), and the parallelism."""

    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    ema_decay: float | None = None
    ema_warmup: bool = False
    parallel: ParallelOptions = field(default_factory=ParallelOptions)

    @staticmethod
    def from_config(cfg: CfgNode) -> "StateOptions":
        ema = cfg.TRAIN.EMA
        decay = ema.DECAY if ema.ENABLE else None
        return StateOptions(OptimizerOptions.from_config(cfg), decay, ema.WARMUP, ParallelOptions.from_config(cfg))


class TrainState:
    """Model, optimizer, EMA weights, loss scaler, counters.

    `model` is the bare model, `wrapped` the same model as used in training. Counters: `epoch` and `step` (updates done
    in the epoch) are the position in the data; `update` counts all updates of the run, including the `skipped` ones,
    whose gradient was non-finite and which advance neither weights nor schedule. `pending_update`: an update whose
    outcome has not been read yet, None when counters and EMA are up to date. `evaluated_at`: the value of `update` at
    the last evaluation; `stale`: evaluations since the best one, `stale_since_decay`: since then or the last of the
    `decays` of a plateau schedule. `best_value`, `best_epoch` and `best_step` (0 for a whole epoch) refer to the task's
    best metric. `shards`: the sharded parameters; they are gathered whole on the rank that `keeps` them.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: Precision,
        ema: ModelEmaV3 | None = None,
        keeps: bool = True,
    ):
        self.model, self.wrapped, self.optimizer = model, wrapped, optimizer
        self.precision, self.scaler, self.ema = precision, precision.scaler(), ema
        self.shards, self._keeps = shards_of(model), keeps
        self.epoch = self.step = self.update = self.samples = 0
        self.skipped = self.skipped_in_row = 0
        self.pending_update: Update | None = None
        # the forward pass changes running statistics: the EMA must include the last update before then
        self.syncs_before_forward = ema is not None and any(True for _ in changing_buffers(model))
        self.best_value: float | None = None
        self.best_epoch, self.best_step = -1, 0
        self.evaluated_at = -1
        self.stale = self.stale_since_decay = self.decays = 0
        self.forms: dict[str, str] = {}  # operators' forms, as chosen on the machine where the run began
        # over the epoch and the log interval; saved so that a resumed run logs the same numbers
        self.means = {name: Mean() for name in _BASE_MEANS}

    @staticmethod
    def build(
        model: nn.Module,
        options: StateOptions,
        precision: Precision,
        world: World,
        forms: Mapping[str, str] | None = None,
    ) -> "TrainState":
        """Builds the state of an untrained run around a model that already has its initial weights.

        Args: forms: the operators' forms, stored in checkpoints.
        The order matters: sharding replaces the parameters, and the optimizer must hold the new ones.
        """
        ema = None
        if options.ema_decay is not None:  # before sharding: a sharded model cannot be copied
            ema = ModelEmaV3(model, decay=options.ema_decay, use_warmup=options.ema_warmup)
        for module in [model] if ema is None else [model, ema.module]:
            shard(module, world, options.parallel)
        log_lines(describe_parallel(model, world, options.parallel))
        wrapped = wrap(model, world)
        own = options.optimizer
        groups = parameter_groups(model, own.weight_decay, own.layer_decay, own.rule)
        if own.backbone != 1.0:
            groups = slow_backbone(groups, model, own.backbone)
        optimizer = build_optimizer(groups, own)
        state = TrainState(model, wrapped, optimizer, precision=precision, ema=ema, keeps=world.is_main)
        state.forms = dict(forms or {})
        if isinstance(optimizer, Lamb) and any(isinstance(each, ExpertShard) for each in state.shards.values()):
            problem = "LAMB needs the norms of whole tensors, but the experts are sharded across the ranks"
            raise ConfigError("TRAIN.OPTIMIZER.NAME", problem, "use adamw or sgd, or TRAIN.PARALLEL fsdp")
        if state.shards and state.scaler.is_enabled():
            problem = "loss scaling does not support sharded parameters"
            raise ConfigError("AMP_DTYPE", problem, "set it to bfloat16, or AMP_ENABLE to False")
        return state

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def sync(self) -> None:
        """Waits for the outcome of the last update, counts it, and updates the EMA if it was applied."""
        update, self.pending_update = self.pending_update, None
        if update is None:
            return
        self.skipped += not update.applied
        self.skipped_in_row = 0 if update.applied else self.skipped_in_row + 1
        if update.applied and self.ema is not None:
            self.ema.update(self.model, step=self.update - self.skipped)

    def start_at(self, epoch: int, plan: RunPlan) -> None:
        """Starts at a later epoch, as if all earlier ones had been completed."""
        self.epoch = epoch
        self.update = self.evaluated_at = epoch * plan.updates_per_epoch
        self.samples = epoch * plan.shape.samples

    def done(self, plan: RunPlan) -> int:
        """Returns how many updates of the plan are done. `update` counts updates performed, which differs if the epoch
        length changed on resume."""
        return self.epoch * plan.updates_per_epoch + min(self.step, plan.updates_per_epoch)

    def finished(self, plan: RunPlan) -> bool:
        """Returns whether all updates of the plan are done and the last one was evaluated."""
        done = self.done(plan) >= plan.total_updates and self.evaluated_at == self.update
        return done or self.epoch >= plan.epochs or self.stopped_early(plan)

    def stopped_early(self, plan: RunPlan) -> bool:
        """Returns whether the run ends early, since the last evaluations brought no improvement."""
        return bool(plan.patience) and self.stale >= plan.patience

    def judge(self, improved: bool, plan: RunPlan) -> None:
        """Counts an evaluation. Args: improved: whether it was the best so far."""
        self.stale = 0 if improved else self.stale + 1
        self.stale_since_decay = 0 if improved else self.stale_since_decay + 1
        if plan.scheduler == "plateau" and self.stale_since_decay >= plan.plateau:
            self.stale_since_decay, self.decays = 0, self.decays + 1

    def reset_best(self) -> None:
        """Discards the best evaluation so far."""
        self.best_value, self.best_epoch, self.best_step = None, -1, 0
        self.stale = self.stale_since_decay = 0

    def describe(self) -> list[str]:
        """Returns log lines on optimizer, precision and checkpoint size."""
        size = self.checkpoint_bytes() / 2**20
        average = "" if self.ema is None else f", EMA of the weights with decay {self.ema.decay}"
        whole = {id(p): shard.numel(p) for name, p in self.model.named_parameters() if (shard := self.shards.get(name))}
        decay = describe_groups(self.optimizer.param_groups, lambda p: whole.get(id(p), p.numel()))
        return [
            f"optimizer: {type(self.optimizer).__name__}, {decay}",
            f"precision: {self.precision}{average}; a checkpoint takes about {size:,.0f} MiB",
        ]

    def checkpoint_bytes(self) -> int:
        """Returns the size of a checkpoint: weights, EMA weights, the optimizer's moments."""
        copies = 1 + (self.ema is not None) + (1 if isinstance(self.optimizer, torch.optim.SGD) else 2)
        sizes = ((self.shards.get(name), p) for name, p in self.model.named_parameters())
        return copies * sum((shard.numel(p) if shard else p.numel()) * p.element_size() for shard, p in sizes)

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate: the EMA if there is one."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and primitives only. A collective operation."""
        self.sync()
        averaged = {} if self.ema is None else {"model_ema": self._whole(self.ema.module)}
        windows = getattr(self.model, "pretrained_windows", None)  # Swin V2: metadata not stored in any tensor
        return {
            "model": self._whole(self.model),
            **averaged,
            **({} if windows is None else {"pretrained_windows": windows()}),
            "optimizer": whole_moments(self.optimizer.state_dict(), self._numbered(), self.shards, self._keeps),
            "optimizer_name": type(self.optimizer).__name__,
            "scaler": self.scaler.state_dict(),
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "best": {"value": self.best_value, "epoch": self.best_epoch, "step": self.best_step},
            "means": {name: [mean.total, mean.weight] for name, mean in self.means.items()},
            "forms": self.forms,
        }

    def _whole(self, model: nn.Module) -> dict[str, Any]:
        return whole_tensors(model.state_dict(), self.shards, self._keeps)

    def _numbered(self) -> dict[int, str]:
        """Returns parameter names by index in the optimizer's state."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {number: names[id(p)] for number, p in enumerate(ordered)}

    def _load_average(self, saved: dict[str, Any], load: Load, origin: str) -> None:
        assert self.ema is not None
        weights = saved.get("model_ema", saved["model"])
        if not self.shards:
            windows = {"pretrained_windows": saved.get("pretrained_windows")}
            load(self.ema.module, {"model": weights, **windows}, origin)
            return
        for name, own in self.ema.module.state_dict().items():
            own.copy_(self.shards[name].part(weights[name]) if name in self.shards else weights[name])

    def load_state_dict(self, saved: dict[str, Any], load: Load, origin: str) -> None:
        """Restores everything except the model's weights, which are loaded before the model is wrapped.

        Raises: KeyError, RuntimeError or TypeError if the optimizer, the scaler or a counter does not match.
        """
        if self.ema is not None:
            self._load_average(saved, load, origin)
        self._load_optimizer(saved)
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        counters = saved["counters"]
        # missing from earlier versions' checkpoints, which were evaluated only at the end of an epoch
        counters = {"evaluated_at": -1 if counters["step"] else counters["update"], **counters}
        counters = {**dict.fromkeys(("stale", "stale_since_decay", "decays"), 0), **counters}
        for name in _COUNTERS:
            setattr(self, name, counters[name])
        if "best_top1" in counters:  # before metrics had names
            best = {"value": counters["best_top1"], "epoch": counters["best_epoch"]}
        else:
            best = saved["best"]
        self.best_epoch, self.best_step = best["epoch"], best.get("step", 0)
        self.best_value = best["value"] if best["epoch"] >= 0 else None
        self.means |= {name: Mean(*mean) for name, mean in saved["means"].items()}

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Loads the moments; weight decay, betas and other options stay as configured for this run."""
        name, own = type(self.optimizer).__name__, self.optimizer.state_dict()
        if saved["optimizer_name"] != name:
            raise RuntimeError(f"the checkpoint's optimizer is {saved['optimizer_name']}, this run's is {name}")
        sizes = [[len(group["params"]) for group in each["param_groups"]] for each in (own, saved["optimizer"])]
        if sizes[0] != sizes[1]:
            raise RuntimeError(f"the parameter groups have {sizes[1]} tensors, this run's have {sizes[0]}")
        needed = {"exp_avg", "exp_avg_sq"} if name in ("AdamW", "Lamb") else set()
        for number, moments in saved["optimizer"]["state"].items():
            if missing := needed - moments.keys():
                raise RuntimeError(f"parameter {number} has no {sorted(missing)[0]}")
        # timm's LAMB stores its step counter in the groups; the learning rate is valid until the next update sets it
        pairs = zip(own["param_groups"], saved["optimizer"]["param_groups"], strict=True)
        groups = [{**theirs, **ours, "lr": theirs.get("lr", ours["lr"])} for ours, theirs in pairs]
        state = own_moments(saved["optimizer"]["state"], self._numbered(), self.shards)
        self.optimizer.load_state_dict({"param_groups": groups, "state": state})
