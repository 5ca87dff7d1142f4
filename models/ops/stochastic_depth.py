"""Stochastic depth (arXiv 1603.09382): every sample skips each residual branch with its own probability.

What is skipped is not computed: a branch runs on the samples that keep it. Which these are is drawn once per forward
pass for all branches, on the CPU, since an accelerator would have to wait for the size of a draw of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """The samples that keep a branch, int64 (b,), b >= 1, and the factor of its result."""

    numbers: Tensor
    scale: float


# None: all samples, unscaled. A tensor (B,): the factor of every sample, the form of fixed shape for torch.compile
Kept = Samples | Tensor | None


def draw_kept(rates: Sequence[float], batch: int, device: torch.device) -> list[Kept]:
    """Draws which samples of a batch keep each branch.

    Args: rates: the probability of every branch to be skipped, below 1.
    """
    if not any(rates) or not batch:
        return [None] * len(rates)
    probability = torch.tensor(rates)[:, None]
    keep = torch.rand(len(rates), batch) >= probability  # (branches, B)
    if torch.compiler.is_compiling():
        factors = (keep / (1 - probability)).to(device)
        return [factor if rate else None for factor, rate in zip(factors, rates, strict=True)]
    scales = [1 / (1 - rate) if kept else 0.0 for rate, kept in zip(rates, keep.any(1).tolist(), strict=True)]
    # the parameters of a branch that no sample keeps must still take part in the backward pass, or
    # DistributedDataParallel waits for them: its first sample runs it, with factor 0
    keep[:, 0] |= ~keep.any(1)
    samples = keep.nonzero()[:, 1]
    samples = samples.to(device, non_blocking=device.type == "cuda")  # on MPS it reads freed memory
    parts = samples.split(keep.sum(1).tolist())
    return [Samples(part, scale) if rate else None for rate, part, scale in zip(rates, parts, scales, strict=True)]


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], kept: Kept) -> Tensor:
    """Returns x + branch(x) of the samples that keep the branch, scaled, and x of the others.

    Args: x (B, ...); branch maps (b, ...) to the same shape for any b >= 1.
    """
    if kept is None:
        return x + branch(x)
    if isinstance(kept, Tensor):
        return x + branch(x) * kept.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    chosen, x = _Choose.apply(x, kept.numbers)
    return _AddTo.apply(x, branch(chosen), kept.numbers, kept.scale)


def as_factors(kept: Kept, x: Tensor) -> Tensor | None:
    """Returns the factor of every sample of `x`, float32 (B,), for a branch that must run on the whole batch."""
    if not isinstance(kept, Samples):
        return kept
    factors = torch.zeros(x.shape[0], device=x.device)
    return factors.index_fill_(0, kept.numbers, kept.scale)


class _Choose(torch.autograd.Function):
    """Returns the chosen samples, and all of them: so that the two gradients are added in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(numbers)
        return x.index_select(0, numbers), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, of_chosen: Tensor, of_all: Tensor) -> tuple[Tensor, None]:
        (numbers,) = ctx.saved_tensors
        return of_all.index_add(0, numbers, of_chosen), None


class _AddTo(torch.autograd.Function):
    """Adds `scale` times `branch` to the chosen samples of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, numbers: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.scale, ctx.dtype = scale, branch.dtype
        return x.index_add(0, numbers, branch.to(x.dtype), alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (numbers,) = ctx.saved_tensors
        return gradient, (gradient.index_select(0, numbers) * ctx.scale).to(ctx.dtype), None, None
