"""One epoch of training, and the evaluation."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.distributed import World
from utils.errors import NumericsError
from utils.evaluation.metrics import EvalResult, evaluation_result, evaluation_sums
from utils.precision import Precision
from utils.training.objective import training_loss
from utils.training.optim import set_learning_rate
from utils.training.plan import RunPlan
from utils.training.schedule import learning_rate
from utils.training.state import TrainState


class Update(NamedTuple):
    """What one update did. `loss`: this process's part of the mean loss, a tensor on the device; `applied`: the
    gradient was finite and the weights moved."""

    loss: Tensor
    learning_rate: float
    grad_norm: float
    applied: bool


def train_epoch(
    state: TrainState,
    batches: Iterable[Any],
    plan: RunPlan,
    smoothing: float,
    on_update: Callable[[Update], None],
) -> None:
    """Train to the end of the epoch that `batches` (data/loaders.py, Batch) belong to.

    `on_update` is called after every update, when `state` is consistent and can be saved.
    Raises: NumericsError after too many updates in a row without a finite gradient.
    """
    state.parallel.train()
    loss = torch.zeros((), device=next(state.model.parameters()).device)
    for batch in batches:
        loss = loss + _backward(state, batch, smoothing)
        if not batch.ends_update:
            continue
        rate = learning_rate(state.update - state.skipped, plan)
        norm, applied = _apply_gradients(state, rate, plan)
        state.samples += plan.update_size(state.step)
        state.step += 1
        state.update += 1
        _count_skipped(state, applied, rate, plan)
        on_update(Update(loss, rate, norm, applied))
        loss = torch.zeros_like(loss)


def _backward(state: TrainState, batch: Any, smoothing: float) -> Tensor:
    """Add the gradient of one micro-batch; returns its weighted loss."""
    # processes exchange gradients once an update, with its last micro-batch
    wait = state.parallel is not state.model and not batch.ends_update
    with state.parallel.no_sync() if wait else nullcontext():  # type: ignore[operator]
        with state.precision.autocast():
            logits = state.parallel(batch.images)
        loss = training_loss(logits, batch.targets, smoothing) * batch.weight
        state.scaler.scale(loss).backward()
    return loss.detach()


def _apply_gradients(state: TrainState, rate: float, plan: RunPlan) -> tuple[float, bool]:
    """Clip and step. A gradient that is not finite is dropped: it is the same on all processes, so all drop it."""
    set_learning_rate(state.optimizer, rate)
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), plan.clip_grad or float("inf"))
    applied = bool(torch.isfinite(norm))
    if applied:
        state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if applied and state.ema is not None:
        state.ema.update(state.model, step=state.update - state.skipped + 1)
    return float(norm), applied


def _count_skipped(state: TrainState, applied: bool, rate: float, plan: RunPlan) -> None:
    state.skipped += not applied
    state.skipped_in_row = 0 if applied else state.skipped_in_row + 1
    if state.skipped_in_row >= plan.max_skipped:
        raise NumericsError(
            f"no finite gradient in {state.skipped_in_row} updates in a row, up to update {state.update} at learning"
            f" rate {rate:.3g}: TRAIN.BASE_LR: lower it, or set AMP_DTYPE bfloat16; the last checkpoint is good"
        )


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Any], classes: int, precision: Precision, world: World) -> EvalResult:
    """Accuracy and loss over the shares of all processes: sums are added, then divided once.

    Top-k is top-5, or top-`classes` where there are fewer. The result does not depend on how samples are batched or
    shared out. Training is not moved: no random number is drawn.
    """
    was_training = model.training
    model.eval()
    k = min(5, classes)
    sums: Tensor | None = None
    for images, targets in batches:
        with precision.autocast():
            logits = model(images)
        part = evaluation_sums(logits, targets, k)
        sums = part if sums is None else sums + part
    model.train(was_training)
    if sums is None:  # more processes than samples
        sums = torch.zeros(4, device=world.device)
    return evaluation_result(world.gather(sums).sum(0), k)
