"""Layers shared by the Swin families; maps are (B, H, W, C) throughout."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Projects the patches of an image (B, C, H, W) to a map (B, H // patch, W // patch, dim) (paper, section 3.1).

    Pixels beyond the last whole patch are dropped.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int, norm: bool = True):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        patch = self.proj.stride[0]
        if min(images.shape[-2:]) < patch:
            raise ValueError(f"an image of {tuple(images.shape[-2:])} pixels is smaller than a patch of {patch}")
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


def gather_patches(x: Tensor) -> Tensor:
    """Concatenates 2x2 neighbours: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 4 * C).

    In the order of the released models: down the first column, then the second.
    """
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    x = x.view(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


class PatchMerging(nn.Module):
    """Halves the resolution and doubles the channels: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2 * C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(gather_patches(x)))


class PostNormMerging(nn.Module):
    """PatchMerging of V2: the norm comes after the reduction (arXiv 2111.09883, section 3.2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(gather_patches(x)))


class Mlp(nn.Module):
    """Linear, GELU, linear on the last dimension, with dropout after both linear layers."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], drop_prob: float) -> Tensor:
    """Returns x + branch(x) with stochastic depth (arXiv 1603.09382): each sample skips the branch with `drop_prob`.

    The branch runs on the kept samples only, scaled by 1 / (1 - drop_prob): mathematically the same as multiplying by a
    mask, without computing what is dropped.

    Args: x (B, ...); branch maps (b, ...) to the same shape for any b >= 1; drop_prob: 0 outside training.
    """
    if drop_prob == 0.0:
        return x + branch(x)
    # drawn on the CPU: the size of a mask drawn on the GPU would force a synchronisation in every block
    kept = (torch.rand(len(x)) >= drop_prob).nonzero().flatten()
    scale = 1.0 / (1.0 - drop_prob)
    if len(kept) == 0:
        # the parameters must still take part in the backward pass, or DistributedDataParallel waits for them
        kept, scale = torch.zeros(1, dtype=torch.long), 0.0
    kept = kept.to(x.device, non_blocking=x.is_cuda)  # on MPS it reads freed memory
    out = branch(x.index_select(0, kept))
    return x.index_add(0, kept, out.to(x.dtype), alpha=scale)
