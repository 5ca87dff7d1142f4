"""Explanations of predictions: class activation maps and attention rollout."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.backbone import SwinBackbone
from models.ops.attend import record_weights
from models.ops.windows import WindowGrid
from utils.errors import ConfigError


@torch.no_grad()
def class_activation(model: SwinBackbone, images: Tensor, classes: Sequence[int]) -> Tensor:
    """Returns the class activation map of each image (Grad-CAM, arXiv 1610.02391).

    The logits are linear in the mean over the last map, so the gradient by which Grad-CAM weights channels is a row of
    the head at every position.
    Args: images (B, C, H, W); classes: one per image. Returns: (B, h, w) >= 0, largest value 1 (or all 0).
    """
    head = model.get_classifier()
    if not isinstance(head, torch.nn.Linear):
        raise ConfigError("--explain", "the model has no head for a class activation map", "use a classifier")
    maps = model.forward_features(images).float()  # (B, h, w, C)
    evidence = torch.einsum("bhwc,bc->bhw", maps, head.weight[list(classes)].float()).relu()
    return evidence / evidence.amax((1, 2), keepdim=True).clamp(min=1e-12)


@torch.no_grad()
def attention_rollout(model: SwinBackbone, images: Tensor) -> Tensor:
    """Returns the relevance of each first-stage token, by attention rollout (arXiv 2005.00928).

    Every block is half identity (its residual connection), half the mean of its heads; between stages, the relevance of
    a token is spread over the four it was merged from. The blocks are applied to the relevance of the last map from
    last to first, since the matrix over all tokens would not fit into memory.
    Returns: (B, h, w) of the first stage; the sum over tokens is 1, minus the relevance of padding.
    Raises: ConfigError for a model without attention.
    """
    recorded: list[Tensor] = []
    with record_weights(recorded):
        sizes = [own.shape[2:] for own in model.forward_intermediates(images)[1]]
    if not recorded:
        raise ConfigError("--explain", "the model has no attention to roll out", "use a Swin with attention")
    weights = iter(reversed(recorded))
    height, width = sizes[-1]
    relevance = torch.full((len(images), height, width), 1 / (height * width), device=images.device)
    for stage, (height, width) in zip(reversed(model.stages()), reversed(sizes), strict=True):
        if relevance.shape[1:] != (height, width):  # merged by four, padded if a side was odd
            spread = relevance.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
            relevance = spread[:, :height, :width]
        blocks: Any = stage.blocks
        for block in reversed(blocks):
            grid = WindowGrid.of(height, width, block.window, block.shift)
            attended = grid.split(relevance[..., None])  # (B, windows, N, 1)
            mean = next(weights).float().mean(2)  # (B, windows, N, N) over heads
            relevance = (relevance + grid.merge(mean.transpose(2, 3) @ attended)[..., 0]) / 2
    return relevance
