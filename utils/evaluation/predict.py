"""Predictions as a stream: one pass over a data set, consumed by whoever counts, reports or writes them."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.derived import keep_derived
from utils.precision import Precision
from utils.terminal import track


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and restores its mode. What it computes from parameters alone, without
    gradients, is kept until the end."""
    was_training = model.training
    model.eval()
    try:
        with keep_derived():
            yield
    finally:
        model.train(was_training)


def progress_of(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    """Passes batches on; those whose number is known show how far the evaluation is."""
    return track(batches, "evaluating", len(batches), "batches") if isinstance(batches, Sized) else batches


@torch.no_grad()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (logits, targets) of each batch, in order, with the model in evaluation mode.

    Consumes no random numbers, so training is unaffected; the mode of the model is restored at the end.
    """
    with evaluating(model):
        for images, targets in progress_of(batches):
            with precision.autocast():
                logits = model(images)
            yield logits, targets


def restrict(logits: Tensor, allowed: Tensor) -> Tensor:
    """Sets the logits (B, classes) of all classes but `allowed`, int64 (n,), to minus infinity."""
    closed = torch.full_like(logits, float("-inf"))
    return closed.index_copy(1, allowed, logits.index_select(1, allowed))
