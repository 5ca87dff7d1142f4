"""Evaluation: one pass over a dataset; sums are reduced across the ranks, then divided once."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils.batches import Batch
from utils.distributed.sharding import needs_all_ranks
from utils.distributed.world import World
from utils.eval_cache import keep_derived
from utils.terminal import track
from utils.training.objective import Evaluation

Forward = Callable[[nn.Module, Batch], Any]


class Evaluator(Protocol):
    """Accumulates the sums of one evaluation on this rank; created for each evaluation."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Adds a batch; should not wait for the device. Args: outputs: from the task's `forward`."""
        ...

    def compute(self, world: World) -> Evaluation:
        """Reduces the sums across all ranks and divides them once. A collective operation.

        Raises: DataError if no sample was counted on any rank.
        """
        ...


def evaluate(
    model: nn.Module, batches: Iterable[Batch], evaluator: Evaluator, forward: Forward, world: World
) -> Evaluation:
    """Evaluates this rank's batches; the result is the same for any number of ranks.

    Args: forward: runs the model on a batch.
    """
    for outputs, batch in predict(model, batches, forward, world):
        evaluator.update(outputs, batch)
    return evaluator.compute(world)


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch], forward: Forward, world: World) -> Iterator[tuple[Any, Batch]]:
    """Yields (outputs, batch) in order, with the model in evaluation mode; restores its mode at the end.

    Consumes no random numbers, so training is unaffected.
    """
    if isinstance(batches, Sized):
        batches = track(batches, "evaluating", len(batches), "batches")
    with evaluating(model):
        for batch in in_step(model, batches, forward, world):
            yield forward(model, batch), batch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, with tensors derived from parameters cached, and restores its mode."""
    was_training = model.training
    model.eval()
    # FSDP gathers parameters for one block at a time; they must not be kept
    cached = nullcontext() if needs_all_ranks(model) else keep_derived()
    try:
        with cached:
            yield
    finally:
        model.train(was_training)


def in_step(model: nn.Module, batches: Iterable[Batch], forward: Forward, world: World) -> Iterator[Batch]:
    """Yields the batches; if a forward pass is a collective operation, until all ranks have run out.

    A rank without further batches takes part with an image of zeros, whose outputs are discarded.
    """
    if not needs_all_ranks(model):
        yield from batches
        return
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        form = next((each for each in world.gather_objects(_form(batch)) if each is not None), None)
        if form is None:
            return
        if batch is None:
            forward(model, _zeros(form, world.device))
        else:
            yield batch


def _form(batch: Batch | None) -> tuple[bool, tuple[int, ...]] | None:
    """Returns whether the images of a batch are a tensor, and the shape of the first."""
    return None if batch is None else (isinstance(batch.images, Tensor), tuple(batch.images[0].shape))


def _zeros(form: tuple[bool, tuple[int, ...]], device: torch.device) -> Batch:
    stacked, shape = form
    image = torch.zeros(shape, device=device)
    return Batch(image[None] if stacked else [image], None, samples=(0,))
