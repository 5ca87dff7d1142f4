"""A Swin with UPerNet for semantic segmentation."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from models.backbone import Stage, SwinBackbone
from models.heads.upernet import FCNHead, UPerHead, resize


class Segmenter(nn.Module):
    """Swin backbone, UPerNet head and auxiliary FCN head, named as in the released weights: `backbone.*`,
    `decode_head.*`, `auxiliary_head.*`.

    Args: backbone: a `dense` one; channels, auxiliary_channels: of the heads; dropout: rate before the classifiers.
    """

    encoder_name: ClassVar[str] = "backbone."

    def __init__(
        self,
        backbone: SwinBackbone,
        num_classes: int,
        channels: int = 512,
        auxiliary_channels: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__()
        assert backbone.options.dense
        self.backbone, self.num_classes = backbone, num_classes
        self.feature_info = backbone.feature_info
        widths = [info["num_chs"] for info in self.feature_info]
        self._auxiliary_level = max(0, len(widths) - 2)  # the last map but one: stride 16
        self.decode_head = UPerHead(widths, num_classes, channels, dropout)
        self.auxiliary_head = FCNHead(widths[self._auxiliary_level], num_classes, auxiliary_channels, dropout)

    @property
    def encoder(self) -> SwinBackbone:
        """The backbone, under the name that weights are loaded by."""
        return self.backbone

    def forward(self, images: Tensor) -> Any:
        """Maps images (B, C, H, W) to logits (B, classes, H, W); in training, to the logits of the decode head and of
        the auxiliary head at the size of their maps, (B, classes, h, w) each."""
        _, maps = self.backbone.forward_intermediates(images)
        if self.training:
            return self.decode_head(maps), self.auxiliary_head(maps[self._auxiliary_level])
        return resize(self.decode_head(maps), (images.shape[2], images.shape[3]))

    def stages(self) -> list[Stage]:
        """Returns the stages of the backbone."""
        return self.backbone.stages()

    def freeze(self, stages: int | None) -> None:
        """See `SwinBackbone.freeze`; the heads are trained."""
        self.backbone.freeze(stages)

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """See `SwinBackbone.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable, stages)

    def get_classifier(self) -> nn.Module:
        """Returns the heads: everything but the backbone."""
        return nn.ModuleList([self.decode_head, self.auxiliary_head])

    def decays(self, name: str) -> bool:
        """Returns whether weight decay applies to a parameter: as released, to all, biases and batch norms of the heads
        included, whose names contain none of three words."""
        undecayed = ("norm", "relative_position_bias_table", "absolute_pos_embed")
        return not any(word in name for word in undecayed) and name not in self.no_weight_decay()

    def no_weight_decay(self) -> set[str]:
        """Returns the backbone's."""
        return {f"{self.encoder_name}{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns the backbone's groups for layer-wise learning-rate decay; the norms of its maps are the heads'."""
        groups = self.backbone.group_matcher(coarse)
        blocks = [(_below_backbone(pattern), group) for pattern, group in groups["blocks"]]
        return {"stem": _below_backbone(groups["stem"]), "blocks": blocks}

    def pretrained_windows(self) -> list[int]:
        """Returns the window that each stage's coordinates are normalised to; empty for V1, which has none."""
        return getattr(self.backbone, "pretrained_windows", list)()


def _below_backbone(pattern: str) -> str:
    return pattern.replace("^", r"^backbone\.")
