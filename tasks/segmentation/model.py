"""A Swin with UPerNet for semantic segmentation."""

from typing import Any

from torch import Tensor

from models.backbone import SwinBackbone
from models.heads.dense import DenseModel
from models.heads.upernet import FCNHead, UPerHead, resize


class Segmenter(DenseModel):
    """Swin backbone, UPerNet head and auxiliary FCN head, named as in the released weights: `backbone.*`,
    `decode_head.*`, `auxiliary_head.*`.

    Args: backbone: a `dense` one; channels, auxiliary_channels: of the heads; dropout: rate before the classifiers.
    """

    def __init__(
        self,
        backbone: SwinBackbone,
        num_classes: int,
        channels: int = 512,
        auxiliary_channels: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__(backbone, num_classes)
        widths = [info["num_chs"] for info in self.feature_info]
        self._auxiliary_level = max(0, len(widths) - 2)  # the last map but one: stride 16
        self.decode_head = UPerHead(widths, num_classes, channels, dropout)
        self.auxiliary_head = FCNHead(widths[self._auxiliary_level], num_classes, auxiliary_channels, dropout)

    def forward(self, images: Tensor) -> Any:
        """Maps images (B, C, H, W) to logits (B, classes, H, W); in training, to the logits of the decode head and of
        the auxiliary head at the size of their maps, (B, classes, h, w) each."""
        _, maps = self.backbone.forward_intermediates(images)
        if self.training:
            return self.decode_head(maps), self.auxiliary_head(maps[self._auxiliary_level])
        return resize(self.decode_head(maps), (images.shape[2], images.shape[3]))
