"""Layers shared by the Swin families; maps are (B, H, W, C) throughout."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.ops.linear import Linear, can_fuse, fused_mlp


class PatchEmbed(nn.Module):
    """Projects the patches of an image (B, C, H, W) to a map (B, H // patch, W // patch, dim) (paper, section 3.1).

    Pixels beyond the last whole patch are dropped or, with `pad`, completed with zeros to a patch: sides rounded up.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int, norm: bool = True, pad: bool = False):
        super().__init__()
        self.pad = pad
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        patch = self.proj.stride[0]
        if self.pad:
            images = F.pad(images, (0, -images.shape[-1] % patch, 0, -images.shape[-2] % patch))
        if min(images.shape[-2:]) < patch:
            raise ValueError(f"an image of {tuple(images.shape[-2:])} pixels is smaller than a patch of {patch}")
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


def gather_patches(x: Tensor) -> Tensor:
    """Concatenates 2x2 neighbours: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 4 * C).

    Patches are concatenated in the order the released models use: the first column top to bottom, then the second.
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
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(gather_patches(x)))


class PostNormMerging(nn.Module):
    """V2's PatchMerging, with the norm after the reduction (arXiv 2111.09883, section 3.2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(gather_patches(x)))


class Mlp(nn.Module):
    """Linear, GELU, linear on the last dimension, with dropout after both linear layers."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, fc2_bias: bool = True):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim, bias=fc2_bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if (self.training and self.drop.p > 0) or not can_fuse(self.fc1, self.act, self.fc2):
            return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return fused_mlp(x, self.fc1, self.fc2)
