"""Stochastic depth (arXiv 1603.09382): every sample skips each residual branch with a given probability.

A branch is computed only for the samples that keep it. These samples are drawn once per forward pass for all branches,
on the CPU: shapes depend on the draw, and drawing on an accelerator would force a synchronisation. A compiled model has
fixed shapes and draws on the device, so that a CUDA graph can capture the draw.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class KeptSamples(NamedTuple):
    """Indices of the samples that keep a branch, int64 (b,), b >= 1, and the scale of its output."""

    indices: Tensor
    scale: float


# None: all samples, unscaled. A tensor (B,): a factor per sample, of fixed shape for torch.compile
BranchMask = KeptSamples | Tensor | None


def draw_masks(rates: Sequence[float], batch: int, device: torch.device) -> list[BranchMask]:
    """Draws the samples that keep each branch. Args: rates: drop probability of each branch, below 1."""
    if not any(rates) or not batch:
        return [None] * len(rates)
    if torch.compiler.is_compiling():
        draws = torch.rand(len(rates), batch, device=device)
        return [(draw >= rate) / (1 - rate) if rate else None for draw, rate in zip(draws, rates, strict=True)]
    keep = torch.rand(len(rates), batch) >= torch.tensor(rates)[:, None]  # (branches, B)
    scales = [1 / (1 - rate) if kept else 0.0 for rate, kept in zip(rates, keep.any(1).tolist(), strict=True)]
    # DistributedDataParallel needs a gradient for every parameter: a branch that no sample keeps runs on the first
    # one, scaled by 0
    keep[:, 0] |= ~keep.any(1)
    indices = keep.nonzero()[:, 1]
    indices = indices.to(device, non_blocking=device.type == "cuda")  # on MPS it would read freed memory
    parts = indices.split(keep.sum(1).tolist())
    return [KeptSamples(part, scale) if rate else None for rate, part, scale in zip(rates, parts, scales, strict=True)]


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], mask: BranchMask) -> Tensor:
    """Returns x + branch(x), scaled, for the samples that keep the branch, and x for the others.

    Args: x (B, ...); branch maps (b, ...) to the same shape for any b >= 1.
    """
    if mask is None:
        return x + branch(x)
    if isinstance(mask, Tensor):
        return x + branch(x) * mask.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    chosen, x = _Choose.apply(x, mask.indices)
    return _AddTo.apply(x, branch(chosen), mask.indices, mask.scale)


def as_factors(mask: BranchMask, x: Tensor) -> Tensor | None:
    """Returns a factor for each sample of `x`, float32 (B,), for a branch that must run on the whole batch."""
    if not isinstance(mask, KeptSamples):
        return mask
    factors = torch.zeros(x.shape[0], device=x.device)
    return factors.index_fill_(0, mask.indices, mask.scale)


class _Choose(torch.autograd.Function):
    """Returns the chosen samples and all samples, so that their gradients are added in one pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(indices)
        return x.index_select(0, indices), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, of_chosen: Tensor, of_all: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        return of_all.index_add(0, indices, of_chosen), None


class _AddTo(torch.autograd.Function):
    """Adds `scale` times `branch` to the chosen samples of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, indices: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.scale, ctx.dtype = scale, branch.dtype
        return x.index_add(0, indices, branch.to(x.dtype), alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return gradient, (gradient.index_select(0, indices) * ctx.scale).to(ctx.dtype), None, None
