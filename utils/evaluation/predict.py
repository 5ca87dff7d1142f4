"""Predictions as a stream: one pass over a data set, consumed by whoever counts, reports or writes them."""

from collections.abc import Iterable, Iterator, Sized

import torch
from torch import Tensor, nn

from utils.derived import keep_derived
from utils.precision import Precision
from utils.terminal import track


@torch.no_grad()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (logits, targets) of each batch, in order, with the model in evaluation mode.

    Consumes no random numbers, so training is unaffected; the mode of the model is restored at the end. Batches whose
    number is known show how far it is.
    """
    was_training = model.training
    if isinstance(batches, Sized):
        batches = track(batches, "evaluating", len(batches), "batches")
    model.eval()
    try:
        with keep_derived():
            for images, targets in batches:
                with precision.autocast():
                    logits = model(images)
                yield logits, targets
    finally:
        model.train(was_training)


def restrict(logits: Tensor, allowed: Tensor) -> Tensor:
    """Sets the logits (B, classes) of all classes but `allowed`, int64 (n,), to minus infinity."""
    closed = torch.full_like(logits, float("-inf"))
    return closed.index_copy(1, allowed, logits.index_select(1, allowed))
