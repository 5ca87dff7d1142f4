"""One epoch of training."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from utils.batches import Batch
from utils.training.incidents import stage_norms as stage_norms_of
from utils.training.objective import Objective
from utils.training.optim import set_learning_rate
from utils.training.parallel import gradient_norm, synchronize
from utils.training.plan import RunPlan
from utils.training.schedule import learning_rate
from utils.training.state import TrainState


class Update(NamedTuple):
    """What one update did. `losses`: this rank's contribution to the mean losses, by name, scalars on the device;
    `applied`: the gradient was finite and the weights were updated; otherwise `stage_norms` says where it was not.
    `samples`: this rank's, by number."""

    losses: dict[str, Tensor]
    learning_rate: float
    grad_norm: float
    applied: bool
    samples: tuple[int, ...] = ()
    stage_norms: dict[str, float] | None = None


def train_epoch(
    state: TrainState,
    batches: Iterable[Batch],
    objective: Objective,
    plan: RunPlan,
    on_update: Callable[[Update], None],
) -> None:
    """Trains to the end of the epoch that `batches` belong to.

    `on_update` is called after every update, when `state` is consistent and can be saved.
    """
    state.wrapped.train()
    losses: dict[str, Tensor] = {}
    samples: tuple[int, ...] = ()
    for batch in batches:
        for name, value in _backward(state, batch, objective).items():
            losses[name] = losses[name] + value if name in losses else value
        samples += batch.samples
        if not batch.ends_update:
            continue
        rate = learning_rate(state.update - state.skipped, plan)
        norm, stage_norms = _apply_gradients(state, rate, plan)
        applied = stage_norms is None
        state.samples += plan.shape.update_size(state.step)
        state.step += 1
        state.update += 1
        state.skipped += not applied
        state.skipped_in_row = 0 if applied else state.skipped_in_row + 1
        on_update(Update(losses, rate, norm, applied, samples, stage_norms))
        losses, samples = {}, ()


def _backward(state: TrainState, batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """Accumulates the gradient of one micro-batch; returns its weighted losses."""
    # gradients are exchanged once per update, with its last micro-batch
    with synchronize(state.wrapped, batch.ends_update):
        losses = {name: value * batch.weight for name, value in objective.loss(state.wrapped, batch).items()}
        state.scaler.scale(losses["loss"]).backward()
    return {name: value.detach() for name, value in losses.items()}


def _apply_gradients(state: TrainState, rate: float, plan: RunPlan) -> tuple[float, dict[str, float] | None]:
    """Clips and steps. A gradient that is not finite is dropped: it is the same on all ranks, so all drop it.

    Returns: the norm of the gradient, and if it was dropped the norms of its parts.
    """
    set_learning_rate(state.optimizer, rate)
    state.scaler.unscale_(state.optimizer)
    total = gradient_norm(state.model.parameters())
    norm, stage_norms = float(total), None
    if not math.isfinite(norm):
        stage_norms = stage_norms_of(state.model)
    else:
        if plan.clip_grad:
            nn.utils.clip_grads_with_norm_(state.model.parameters(), plan.clip_grad, total)
        state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if stage_norms is None and state.ema is not None:
        state.ema.update(state.model, step=state.update - state.skipped + 1)
    return norm, stage_norms
