"""SimMIM loss (arXiv 2111.09886)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.simmim.masking import in_pixels


def masked_error(predicted: Tensor, images: Tensor, mask: Tensor, side: int = 0) -> Tensor:
    """Returns the mean absolute error over the masked pixels of every image, in float32: (B,).

    Args: predicted, images (B, C, H, W); mask bool (B, h, w), one element per square; side: side of the
    neighbourhood that normalises the target; 0: none.
    """
    mean, deviation = neighbourhood(images, side)
    hidden = in_pixels(mask, images)
    errors = (predicted.float() - (images - mean) / deviation).abs() * hidden
    return errors.sum((1, 2, 3)) / (hidden.sum((1, 2, 3)) + 1e-5) / images.shape[1]


def neighbourhood(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns the mean and standard deviation around every pixel, float32 (B, C, H, W); 0 and 1 if `side` is 0.

    The neighbourhood is a square centred on the pixel and clipped at the edges; the variance is unbiased.
    """
    if not side:
        return torch.zeros((), device=images.device), torch.ones((), device=images.device)

    def sums(values: Tensor) -> Tensor:  # rows, then columns: side + side additions instead of side x side
        for kernel, padding in (((side, 1), (side // 2, 0)), ((1, side), (0, side // 2))):
            values = F.avg_pool2d(values, kernel, 1, padding, divisor_override=1)
        return values

    images = images.float()
    count = sums(torch.ones_like(images[:1, :1]))
    mean = sums(images) / count
    variance = (sums(images.square()) / count - mean.square()) * count / (count - 1)
    return mean, (variance.clamp(min=0) + 1e-6).sqrt()
