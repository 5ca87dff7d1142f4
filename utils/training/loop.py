"""The training loop of one epoch."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from utils.batches import Batch
from utils.distributed.experts import reduce_expert_gradients
from utils.training.objective import Objective
from utils.training.optim import set_learning_rate, step_if_finite
from utils.training.parallel import gradient_norms, synchronize
from utils.training.plan import RunPlan
from utils.training.schedule import learning_rate
from utils.training.state import TrainState
from utils.training.update import Readback, Update


def train_epoch(
    state: TrainState,
    batches: Iterable[Batch],
    objective: Objective,
    plan: RunPlan,
    on_update: Callable[[Update], None],
) -> None:
    """Trains on `batches`, the rest of an epoch.

    `on_update` is called after every update; the state can be saved then, once it is synced (`TrainState.sync`).
    """
    state.wrapped.train()
    losses: dict[str, Tensor] = {}
    samples: tuple[int, ...] = ()
    for batch in batches:
        if state.syncs_before_forward:
            state.sync()
        for name, value in _backward(state, batch, objective).items():
            losses[name] = losses[name] + value if name in losses else value
        samples += batch.samples
        if not batch.ends_update:
            continue
        state.sync()  # waits for the previous update; this one's passes are already queued
        rate = partial(learning_rate, max(0, state.done(plan) - state.skipped), plan, decays=state.decays)
        names, outcome = _apply_gradients(state, rate, plan)
        update = Update(state.update, losses, rate(), outcome, names, samples)
        state.samples += plan.shape.update_size(state.step)
        state.step += 1
        state.update += 1
        state.pending_update = update
        objective.after_update(state.model, state.done(plan), plan.total_updates)
        on_update(update)
        losses, samples = {}, ()
    state.sync()


def _backward(state: TrainState, batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """Accumulates the gradient of one micro-batch; returns its weighted losses."""
    # gradients are synchronised once per update, with the last micro-batch
    with synchronize(state.wrapped, batch.ends_update):
        losses = {name: value * batch.weight for name, value in objective.loss(state.wrapped, batch).items()}
        state.scaler.scale(losses["loss"]).backward()
    return {name: value.detach() for name, value in losses.items()}


def _apply_gradients(
    state: TrainState, rate: Callable[[float], float], plan: RunPlan
) -> tuple[tuple[str, ...], Readback]:
    """Clips and steps without waiting for the device; all ranks skip the step if the gradient is non-finite.

    Returns: the names of the parameters with a gradient; the gradient's norms and the loss scale, as read by `Update`.
    """
    set_learning_rate(state.optimizer, rate)
    reduce_expert_gradients(state.model)
    scale = state.scaler.scale(torch.ones(1, device=state.device))
    state.scaler.unscale_(state.optimizer)
    names, norms = gradient_norms(state.model, state.shards)
    total = torch.linalg.vector_norm(norms)
    step_if_finite(state.optimizer, total, plan.clip_grad)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return names, Readback(torch.cat([norms, total.view(1), scale]))
