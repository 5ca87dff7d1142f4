"""One epoch of training."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from utils.batches import Batch
from utils.errors import NumericsError
from utils.training.objective import Objective
from utils.training.optim import set_learning_rate
from utils.training.parallel import clip_gradients, synchronize
from utils.training.plan import RunPlan
from utils.training.schedule import learning_rate
from utils.training.state import TrainState


class Update(NamedTuple):
    """What one update did. `losses`: this rank's contribution to the mean losses, by name, scalars on the device;
    `applied`: the gradient was finite and the weights were updated."""

    losses: dict[str, Tensor]
    learning_rate: float
    grad_norm: float
    applied: bool


def train_epoch(
    state: TrainState,
    batches: Iterable[Batch],
    objective: Objective,
    plan: RunPlan,
    on_update: Callable[[Update], None],
) -> None:
    """Trains to the end of the epoch that `batches` belong to.

    `on_update` is called after every update, when `state` is consistent and can be saved.
    Raises: NumericsError after too many consecutive updates without a finite gradient.
    """
    state.wrapped.train()
    losses: dict[str, Tensor] = {}
    for batch in batches:
        for name, value in _backward(state, batch, objective).items():
            losses[name] = losses[name] + value if name in losses else value
        if not batch.ends_update:
            continue
        rate = learning_rate(state.update - state.skipped, plan)
        norm, applied = _apply_gradients(state, rate, plan)
        state.samples += plan.shape.update_size(state.step)
        state.step += 1
        state.update += 1
        _count_skipped(state, applied, rate, plan)
        on_update(Update(losses, rate, norm, applied))
        losses = {}


def _backward(state: TrainState, batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """Accumulates the gradient of one micro-batch; returns its weighted losses."""
    # gradients are exchanged once per update, with its last micro-batch
    with synchronize(state.wrapped, batch.ends_update):
        losses = {name: value * batch.weight for name, value in objective.loss(state.wrapped, batch).items()}
        state.scaler.scale(losses["loss"]).backward()
    return {name: value.detach() for name, value in losses.items()}


def _apply_gradients(state: TrainState, rate: float, plan: RunPlan) -> tuple[float, bool]:
    """Clips and steps. A gradient that is not finite is dropped: it is the same on all ranks, so all drop it."""
    set_learning_rate(state.optimizer, rate)
    state.scaler.unscale_(state.optimizer)
    norm, applied = clip_gradients(state.model.parameters(), plan.clip_grad)
    if applied:
        state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if applied and state.ema is not None:
        state.ema.update(state.model, step=state.update - state.skipped + 1)
    return norm, applied


def _count_skipped(state: TrainState, applied: bool, rate: float, plan: RunPlan) -> None:
    state.skipped += not applied
    state.skipped_in_row = 0 if applied else state.skipped_in_row + 1
    if state.skipped_in_row >= plan.max_skipped:
        raise NumericsError(
            f"no finite gradient in {state.skipped_in_row} consecutive updates, the last is {state.update} at learning"
            f" rate {rate:.3g}: TRAIN.BASE_LR: lower it, or set AMP_DTYPE bfloat16; the last checkpoint is good"
        )
