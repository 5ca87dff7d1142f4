"""Random masks over squares of an image (SimMIM, arXiv 2111.09886, section 3.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from utils.errors import ConfigError
from utils.preprocessing import Size, image_size
from utils.seeding import derive_seed


@dataclass(frozen=True)
class MaskingOptions:
    """`size` of the image and `square`, the side of a masked square, in pixels; `ratio` of squares to mask."""

    size: Size
    square: int
    ratio: float

    @staticmethod
    def from_config(cfg: CfgNode) -> "MaskingOptions":
        return MaskingOptions(image_size(cfg.DATA.IMG_SIZE), cfg.DATA.MASK_PATCH_SIZE, cfg.DATA.MASK_RATIO)


class Masking:
    """Masks the same number of random squares in every image.

    A mask is bool (B, H / square, W / square). Raises: ConfigError if images do not divide into squares.
    """

    def __init__(self, options: MaskingOptions):
        (height, width), square = options.size, options.square
        if height % square or width % square:
            problem = f"images of {height}x{width} do not divide into squares of {square}"
            raise ConfigError("DATA.MASK_PATCH_SIZE", problem, "set a divisor")
        self._grid = (height // square, width // square)
        self.squares = self._grid[0] * self._grid[1]
        self.masked = math.ceil(self.squares * options.ratio)

    def __call__(self, images: Tensor, targets: object = None) -> tuple[Tensor, Tensor]:
        """Returns the images and their masks, drawn from torch's CPU generator, seeded for every micro-batch."""
        return images, self._masks(torch.rand(len(images), self.squares)).to(images.device)

    def fixed(self, samples: Sequence[int]) -> Tensor:
        """Returns the evaluation masks of samples, which depend only on their indices."""
        generators = [torch.Generator().manual_seed(derive_seed("mask", i)) for i in samples]
        return self._masks(torch.stack([torch.rand(self.squares, generator=each) for each in generators]))

    def _masks(self, draws: Tensor) -> Tensor:
        """Masks the squares with the smallest draws (B, squares)."""
        chosen = draws.argsort(1)[:, : self.masked]
        return torch.zeros(draws.shape, dtype=torch.bool).scatter_(1, chosen, True).view(-1, *self._grid)


def in_pixels(mask: Tensor, images: Tensor) -> Tensor:
    """Upsamples a mask over squares, bool (B, h, w), to the pixels of images: bool (B, 1, H, W)."""
    return F.interpolate(mask[:, None].float(), images.shape[2:], mode="nearest").bool()
