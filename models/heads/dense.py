"""Base of models that consist of a Swin and heads on its maps, named as in the authors' files."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from models.backbone import Stage, SwinBackbone

UNDECAYED = ("norm", "relative_position_bias_table", "absolute_pos_embed")  # in names, as in the released recipes


class DenseModel(nn.Module):
    """A `dense` Swin as `backbone`; subclasses add heads. It offers what training and loading need of a model."""

    encoder_name: ClassVar[str] = "backbone."

    def __init__(self, backbone: SwinBackbone, num_classes: int):
        super().__init__()
        assert backbone.options.dense
        self.backbone, self.num_classes = backbone, num_classes
        self.feature_info = backbone.feature_info

    @property
    def encoder(self) -> SwinBackbone:
        """The backbone, under the name that weights are loaded by."""
        return self.backbone

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
        return nn.ModuleList(module for name, module in self.named_children() if name != "backbone")

    def decays(self, name: str) -> bool:
        """Returns whether weight decay applies to a parameter: as released, also to biases and batch norms of heads."""
        return not any(word in name for word in UNDECAYED) and name not in self.no_weight_decay()

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
