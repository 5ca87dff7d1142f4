"""Predictions as a stream: one pass over a data set, consumed by whoever counts, reports or writes them."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from utils.distributed.sharding import needs_all_ranks
from utils.distributed.world import World
from utils.eval_cache import keep_derived
from utils.precision import Precision
from utils.terminal import track


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and restores its mode. What it computes from parameters alone, without
    gradients, is kept until the end."""
    was_training = model.training
    model.eval()
    # what is gathered for one block at a time is not kept
    with_derived = nullcontext() if needs_all_ranks(model) else keep_derived()
    try:
        with with_derived:
            yield
    finally:
        model.train(was_training)


def in_step(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], forward: Callable[[Tensor], object], world: World
) -> Iterator[tuple[Tensor, Tensor]]:
    """Passes batches on; where a forward pass of the model is a collective operation, for as long as any rank has some.

    A rank that has no more takes part with images of zeros, whose outputs nobody gets.
    Args: forward: runs the model as the caller does with the images of each batch.
    """
    if not needs_all_ranks(model):
        yield from batches
        return
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        shapes = world.gather_objects(None if batch is None else tuple(batch[0].shape[1:]))
        shape = next((each for each in shapes if each is not None), None)
        if shape is None:
            return
        if batch is None:
            forward(torch.zeros(1, *shape, device=world.device))
        else:
            yield batch


def progress_of(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    """Passes batches on; those whose number is known show how far the evaluation is."""
    return track(batches, "evaluating", len(batches), "batches") if isinstance(batches, Sized) else batches


@torch.no_grad()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision, world: World
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (logits, targets) of each batch, in order, with the model in evaluation mode.

    Consumes no random numbers, so training is unaffected; the mode of the model is restored at the end.
    """

    def forward(images: Tensor) -> Tensor:
        with precision.autocast():
            return model(images)

    with evaluating(model):
        for images, targets in in_step(model, progress_of(batches), forward, world):
            yield forward(images), targets


def restrict(logits: Tensor, allowed: Tensor) -> Tensor:
    """Sets the logits (B, classes) of all classes but `allowed`, int64 (n,), to minus infinity."""
    closed = torch.full_like(logits, float("-inf"))
    return closed.index_copy(1, allowed, logits.index_select(1, allowed))
