"""Mask R-CNN and Cascade Mask R-CNN on a Swin, as released: same parameter names, same computation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.backbone import SwinBackbone
from models.detection.assign import MatchOptions
from models.detection.box_head import BoxHeadOptions, delta_loss, giou_loss
from models.detection.fpn import FPN
from models.detection.instances import Detections, Frame, Objects
from models.detection.roi_head import RoIHead, RoIOptions, StageOptions
from models.detection.rpn import ProposalOptions, RPNHead, RPNOptions
from models.heads.dense import DenseModel


@dataclass(frozen=True)
class DetectorOptions:
    """A released detector. `masks`: whether it predicts masks; `channels`: of the pyramid and the heads."""

    rpn: RPNOptions
    roi: RoIOptions
    masks: bool = True
    channels: int = 256


MASK_RCNN = DetectorOptions(
    RPNOptions(),
    RoIOptions((StageOptions(MatchOptions(0.5, 0.5, 0.5)),), BoxHeadOptions(), delta_loss),
)
CASCADE_MASK_RCNN = DetectorOptions(
    RPNOptions(inside=True, beta=1 / 9, training=ProposalOptions(2000, 2000)),
    RoIOptions(
        (
            StageOptions(MatchOptions(0.5, 0.5), (0.1, 0.1, 0.2, 0.2), 1.0),
            StageOptions(MatchOptions(0.6, 0.6), (0.05, 0.05, 0.1, 0.1), 0.5),
            StageOptions(MatchOptions(0.7, 0.7), (0.033, 0.033, 0.067, 0.067), 0.25),
        ),
        BoxHeadOptions(convs=4, fcs=1),
        giou_loss,
    ),
)
DETECTORS = {"mask_rcnn": MASK_RCNN, "cascade_mask_rcnn": CASCADE_MASK_RCNN}


class Detector(DenseModel):
    """Swin backbone, feature pyramid, proposals and heads, named as in the released weights: `backbone.*`, `neck.*`,
    `rpn_head.*`, `roi_head.*`.

    Args: backbone: a `dense` one of four stages.
    """

    def __init__(self, backbone: SwinBackbone, num_classes: int, options: DetectorOptions = MASK_RCNN):
        super().__init__(backbone, num_classes)
        assert len(backbone.feature_info) == 4
        self.options = options
        self.neck = FPN([info["num_chs"] for info in backbone.feature_info], options.channels)
        self.rpn_head = RPNHead(options.channels, options.rpn)
        self.roi_head = RoIHead(num_classes, options.roi, options.channels, options.masks)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Maps images (B, 3, H, W) to the maps of five levels, (B, channels, h, w) each, finest first."""
        _, maps = self.backbone.forward_intermediates(images)
        return self.neck(maps)

    def forward(
        self, images: Tensor, frames: Sequence[Frame] | None = None, objects: Sequence[Objects] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Returns the losses in training, the detections of each image in evaluation.

        Args: images (B, 3, H, W), padded at the right and bottom to multiples of 32; frames: sizes of each image, by
        default of the batch; objects: annotation of each image, in training. On meta tensors, see `count`.
        """
        if self.training:
            assert frames is not None and objects is not None
            return self.losses(images, frames, objects)
        if images.is_meta:
            self.count(images)
            return []
        size = images.shape[2], images.shape[3]
        return self.detect(images, frames or [Frame(size, size)] * len(images))

    def losses(
        self,
        images: Tensor,
        frames: Sequence[Frame],
        objects: Sequence[Objects],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Returns the loss terms, which are to be added, under the same names for any objects.

        They are normalised over the micro-batch, as in the recipes. Args: generator: on the CPU, draws the anchors
        and regions that are trained; None: torch's own.
        """
        maps = self.pyramid(images)
        predicted = self.rpn_head(maps)
        losses = self.rpn_head.losses(predicted, frames, objects, generator)
        proposals = self.rpn_head.proposals(predicted, frames)
        return losses | self.roi_head.losses(maps, proposals, frames, objects, generator)

    def count(self, images: Tensor) -> None:
        """Performs the operations of `detect` on meta tensors, whose proposals are unknown: as many as there may be.

        Published FLOPs are counted like this.
        """
        maps = self.pyramid(images)
        self.rpn_head(maps)
        self.roi_head.count(maps[0], len(images) * self.options.rpn.evaluation.count)

    @torch.no_grad()
    def detect(self, images: Tensor, frames: Sequence[Frame]) -> list[Detections]:
        """Returns the detections of each image, in the original image's coordinates."""
        maps = self.pyramid(images)
        return self.roi_head.detect(maps, self.rpn_head.proposals(self.rpn_head(maps), frames), frames)
