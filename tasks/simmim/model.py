"""Masked image modelling: "SimMIM: A Simple Framework for Masked Image Modeling", arXiv 2111.09886."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.backbone import Stage, SwinBackbone
from utils.errors import ConfigError
from utils.preprocessing import image_size


class SimMIM(nn.Module):
    """Predicts the pixels of an image from its unmasked tokens (section 3).

    A learned token replaces masked tokens after the patch embedding; a single linear layer on the last feature map
    predicts the pixels. Parameter names match the released weights: `encoder.*`, `encoder.mask_token`, `decoder.0.*`.

    Args: encoder: its head is removed; square: side of a masked square, in pixels; decay_position_bias: whether weight
    decay applies to position biases too.
    Raises: ConfigError if squares do not divide into patches, or images into tokens of the last map.
    """

    num_classes = 0
    encoder_name: ClassVar[str] = "encoder."

    def __init__(self, encoder: SwinBackbone, square: int = 32, decay_position_bias: bool = True):
        super().__init__()
        _check_sizes(encoder, square)
        encoder.reset_classifier(0)
        encoder.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.options.embed_dim))
        nn.init.trunc_normal_(encoder.mask_token, std=0.02)
        self.encoder = encoder
        self._decay_position_bias = decay_position_bias
        self.feature_info = encoder.feature_info
        self._tokens = square // encoder.options.patch_size  # per side of a square
        stride = encoder.feature_info[-1]["reduction"]
        pixels = stride**2 * encoder.options.in_chans
        self.decoder = nn.Sequential(nn.Conv2d(encoder.num_features, pixels, 1), nn.PixelShuffle(stride))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns predicted images (B, C, H, W).

        Args: mask: bool (B, H / square, W / square), true for masked squares; None for none.
        """
        tokens = None if mask is None else mask.repeat_interleave(self._tokens, 1).repeat_interleave(self._tokens, 2)
        features = self.encoder.forward_features(images, tokens)
        return self.decoder(features.permute(0, 3, 1, 2))

    def stages(self) -> list[Stage]:
        """Returns the stages of the encoder."""
        return self.encoder.stages()

    def set_grad_checkpointing(self, enable: bool = True, stages: Any = None) -> None:
        """See `SwinBackbone.set_grad_checkpointing`."""
        self.encoder.set_grad_checkpointing(enable, stages)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the mask token and the position embedding and, unless they are decayed, position biases.

        The original intends to exclude position biases too, but its names for them match no parameter.
        """
        names = {"absolute_pos_embed"} if self._decay_position_bias else self.encoder.no_weight_decay()
        return {f"encoder.{name}" for name in (*names, "mask_token")}

    def pretrained_windows(self) -> list[int]:
        """Returns the window that each stage's coordinates are normalised to; empty for V1, which has none."""
        return getattr(self.encoder, "pretrained_windows", list)()


def _check_sizes(encoder: SwinBackbone, square: int) -> None:
    patch, stride = encoder.options.patch_size, encoder.feature_info[-1]["reduction"]
    height, width = image_size(encoder.options.img_size)
    if square % patch:
        problem = f"squares of {square} pixels do not divide into patches of {patch}"
        raise ConfigError("DATA.MASK_PATCH_SIZE", problem, "set a multiple")
    if height % stride or width % stride:
        problem = f"images of {height}x{width} do not divide into predicted squares of {stride} pixels"
        raise ConfigError("DATA.IMG_SIZE", problem, "set a multiple")
