"""Detectors for export."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.detection.box_head import detect
from models.detection.detector import Detector
from models.detection.instances import Detections, Frame
from models.detection.portable import PortableDetector
from tasks.export import Export

MATCHED = 0.95  # share of detections that must be equal: rounding may decide which of two boxes is suppressed


class DetectorExport(Export):
    """A detector of one image in a square, padded at the right and bottom."""

    inputs = ("images", "size")
    trial = "for a random image"

    def __init__(self, detector: Detector, size: tuple[int, int, int]):
        super().__init__(PortableDetector(detector), size, 1)
        self._detector = detector
        self.outputs = ("boxes", "scores", "labels", *(["masks"] if detector.options.masks else []))

    def example(self, count: int) -> tuple[Tensor, ...]:
        """Returns one image, whatever the number."""
        return torch.randn(1, *self.size), torch.tensor(self.size[1:])

    def difference(self, run: Callable[..., Any]) -> float:
        """Returns the largest difference of boxes, relative to the image, of scores and of mask probabilities, among
        the 95% of the detections that are most alike."""
        images, size = self.example(1)
        expected, found = self._detect(images), Detections(*run(images, size))
        return torch.cat([_apart(expected, found, self.size[1]), _apart(found, expected, self.size[1])]).max().item()

    def _detect(self, images: Tensor) -> Detections:
        """Returns the detections of any score."""
        size = images.shape[2], images.shape[3]
        rpn, roi = self._detector.rpn_head, self._detector.roi_head
        maps = self._detector.pyramid(images)
        proposals = rpn.proposals(rpn(maps), [Frame(size, size)])
        ((boxes, probabilities),) = roi.classify(maps, proposals, [size])
        box, score, label = detect(boxes, probabilities, replace(roi.options.detection, score=0.0))
        (masks,) = roi.masks(maps, [box], [label])
        return Detections(box, score, label, masks)


def _apart(first: Detections, second: Detections, side: int) -> Tensor:
    """Returns how far detections are from the closest of others, without the least similar twentieth."""
    apart = ((first.boxes[:, None] - second.boxes).abs() / side).amax(-1)
    apart = torch.maximum(apart, (first.scores[:, None] - second.scores).abs())
    if first.masks is not None and second.masks is not None:
        apart = torch.maximum(apart, (first.masks[:, None] - second.masks).abs().amax((-1, -2)))
    apart = torch.where(first.labels[:, None] == second.labels, apart, torch.inf)
    return apart.amin(1).sort().values[: round(len(apart) * MATCHED)]
