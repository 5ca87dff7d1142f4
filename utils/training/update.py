"""Results of an update, read back from the device asynchronously."""

import math
from functools import cached_property

import torch
from torch import Tensor


class Readback:
    """An asynchronous copy from the device; reading it waits for the copy, not for work queued later.

    Args: values: float32 (N,).
    """

    def __init__(self, values: Tensor):
        self._values = values.to("cpu", non_blocking=values.device.type == "cuda")
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    @cached_property
    def numbers(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


class Update:
    """One update of the weights.

    Args: number: index of the update in the run; losses: this rank's contribution to the mean losses, by name, scalars
    on the device; outcome: the gradient norm of every parameter, the total norm, and the loss scale; names: parameter
    names; samples: indices of this rank's samples.
    """

    def __init__(
        self,
        number: int,
        losses: dict[str, Tensor],
        learning_rate: float,
        outcome: Readback,
        names: tuple[str, ...] = (),
        samples: tuple[int, ...] = (),
    ):
        self.number, self.losses, self.learning_rate, self.samples = number, losses, learning_rate, samples
        self._outcome, self._names = outcome, names

    @property
    def grad_norm(self) -> float:
        """The norm of the gradient, before clipping."""
        return self._outcome.numbers[-2]

    @property
    def loss_scale(self) -> float:
        """The loss scale, 1 without scaling."""
        return self._outcome.numbers[-1]

    @property
    def applied(self) -> bool:
        """Whether the gradient was finite, so that the weights were updated."""
        return math.isfinite(self.grad_norm)

    def stage_norms(self) -> dict[str, float]:
        """Returns the gradient norm of each part of the model: patch_embed, layers.0, ..., head."""
        squares: dict[str, float] = {}
        for name, norm in zip(self._names, self._outcome.numbers, strict=False):
            parts = name.split(".")
            stage = ".".join(parts[: 2 if len(parts) > 2 and parts[1].isdigit() else 1])
            squares[stage] = squares.get(stage, 0.0) + norm * norm
        return {stage: math.sqrt(square) for stage, square in squares.items()}
