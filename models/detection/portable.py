"""A detector for export: no shape depends on values, which torch.export and ONNX require between its operators."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from models.detection.anchors import PADDING
from models.detection.box_head import DetectionOptions
from models.detection.detector import Detector
from models.detection.rpn import Predicted

MAX_CANDIDATES = 5000  # pairs of a region and a class that enter NMS


class PortableDetector(nn.Module):
    """Detects the objects of one image as `Detector.detect` does, without a score threshold.

    Only the `MAX_CANDIDATES` pairs of a region and a class with the highest scores enter NMS.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Returns boxes (n, 4) in pixels of the input, scores (n,), labels (n,), and masks (n, 28, 28): probabilities
        inside each box, if the detector predicts masks.

        n is the limit of detections, highest score first; unused entries have score 0.
        Args: images (1, C, H, W), padded at the right and bottom; size (2,) int64: height and width without padding.
        """
        rpn, roi = self.detector.rpn_head, self.detector.roi_head
        maps = self.detector.pyramid(images)
        proposals, valid = self._propose(rpn(maps), size)
        ((boxes, probabilities),) = roi.classify(maps, [proposals], [size])
        box, score, label = _select(boxes, probabilities * valid[:, None], roi.options.detection)
        (masks,) = roi.masks(maps, [box], [label])
        return (box, score, label) if masks is None else (box, score, label, masks)

    def _propose(self, predicted: Predicted, size: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes (n, 4), and which of them are proposals."""
        rpn = self.detector.rpn_head
        options = rpn.options.evaluation
        box, score, level = rpn.candidates(_within(predicted, size), 0, size, options)
        score = torch.where((box[:, 2:] > box[:, :2]).all(1), score, 0)
        score, order = _suppress(box, score, level, options.iou)
        best = order[: options.count]
        return box[best], score[: options.count] > 0


def _within(predicted: Predicted, size: Tensor) -> Predicted:
    """Rules out the anchors beyond the padding that `Detector` adds, which would displace others."""
    limit = ((size + PADDING - 1) // PADDING * PADDING).flip(0)  # x, y
    logits = [
        torch.where((anchors.view(-1, 2, 2).mean(1) < limit).all(1), own, -torch.inf)
        for anchors, own in zip(predicted.anchors, predicted.logits, strict=True)
    ]
    return replace(predicted, logits=logits)


def _select(boxes: Tensor, probabilities: Tensor, options: DetectionOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes (k, 4), scores (k,) and labels (k,). Args: boxes (n, classes, 4); probabilities (n, classes)."""
    score, order = probabilities.flatten().sort(descending=True, stable=True)
    score, order = score[:MAX_CANDIDATES], order[:MAX_CANDIDATES]
    box, label = boxes.flatten(0, 1)[order], order % probabilities.shape[1]
    score, kept = _suppress(box, score, label, options.iou)
    best = kept[: options.count]
    return box[best], score[: options.count], label[best]


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> tuple[Tensor, Tensor]:
    """Returns scores, 0 for suppressed boxes, in descending order, and that order; see `grouped_nms`."""
    kept = nms(boxes + (groups.to(boxes.dtype) * (boxes.max() + 1))[:, None], scores, iou)
    mask = torch.zeros_like(scores).index_fill(0, kept, 1)
    return (scores * mask).sort(descending=True, stable=True)
