"""Explanations of predictions: class activation maps and attention rollout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.backbone import Stage, SwinBackbone
from models.ops.attend import record_weights
from models.ops.windows import WindowGrid
from utils.errors import ConfigError


@torch.no_grad()
def class_activation(model: SwinBackbone, images: Tensor, classes: Sequence[int]) -> Tensor:
    """Returns where the evidence for a class is in each image (Grad-CAM, arXiv 1610.02391).

    The logits are a linear function of the mean over the last map, so the gradient that Grad-CAM weights channels with
    is the row of the head, the same everywhere.
    Args: images (B, C, H, W); classes: one per image. Returns: (B, h, w) >= 0, largest value 1 (or all 0).
    """
    head = model.get_classifier()
    if not isinstance(head, torch.nn.Linear):
        raise ConfigError("the model has no head: a class activation map needs one")
    maps = model.forward_features(images).float()  # (B, h, w, C)
    evidence = torch.einsum("bhwc,bc->bhw", maps, head.weight[list(classes)].float()).relu()
    return evidence / evidence.amax((1, 2), keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def attention_rollout(model: SwinBackbone, images: Tensor) -> Tensor:
    """Returns how much each token of the first stage reaches the result through attention (arXiv 2005.00928).

    Every block is half identity (its residual connection), half the mean of its heads; between stages, a token stands
    for the four it was merged from. For Swin, the product of the blocks is applied to the relevance of the last map,
    from the last block to the first, since the whole matrix over all tokens would not fit into memory.
    Returns: (B, h, w) of the first stage; the sum over tokens is 1, less what goes to padding.
    Raises: ConfigError for a model without attention.
    """
    recorded: list[Tensor] = []
    with record_weights(recorded):
        sizes = [own.shape[2:] for own in model.forward_intermediates(images)[1]]
    if not recorded:
        raise ConfigError("the model has no attention to roll out")
    weights = iter(reversed(recorded))
    height, width = sizes[-1]
    relevance = torch.full((len(images), height, width), 1 / (height * width), device=images.device)
    for stage, (height, width) in zip(reversed(model.stages()), reversed(sizes), strict=True):
        if relevance.shape[1:] != (height, width):  # merged by four, padded if a side was odd
            spread = relevance.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
            relevance = spread[:, :height, :width]
        for window, shift in reversed(_windows(stage)):
            grid = WindowGrid.of(height, width, window, shift)
            attended = grid.split(relevance[..., None])  # (B, windows, N, 1)
            mean = next(weights).float().mean(2)  # (B, windows, N, N) over heads
            relevance = (relevance + grid.merge(mean.transpose(2, 3) @ attended)[..., 0]) / 2
    return relevance


def _windows(stage: Stage) -> list[tuple[int, int]]:
    """Returns window and shift of every block."""
    return [(block.window, block.shift) for block in stage.blocks]  # type: ignore[misc]
