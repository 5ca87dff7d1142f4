"""Detectors for export."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.detection.box_head import detect
from models.detection.detector import Detector
from models.detection.instances import Detections, Frame
from models.detection.portable import PortableDetector
from tasks.export import Export

MATCHED = 0.9  # share of detections that must be equal: rounding may decide which of two boxes is suppressed


class DetectorExport(Export):
    """A detector of one image in a square, padded at the right and bottom."""

    inputs = ("images", "size")
    trial = "for a whole and a narrow image"

    def __init__(self, detector: Detector, size: tuple[int, int, int]):
        super().__init__(PortableDetector(detector), size, 1)
        self._detector = detector
        self.outputs = ("boxes", "scores", "labels", *(["masks"] if detector.options.masks else []))

    def example(self, count: int) -> tuple[Tensor, ...]:
        """Returns one image, whatever the number."""
        return torch.randn(1, *self.size), torch.tensor(self.size[1:])

    def difference(self, run: Callable[..., Any]) -> float:
        """Returns the largest difference of boxes, relative to the image, of scores and of mask probabilities, among
        the 90% of the detections that match best."""
        images, size = self.example(1)
        whole = _apart(_used(run(images, size)), self._detect(images), self.size[1])
        size[1] = max(1, int(size[1]) * 3 // 5)
        images[..., size[1] :] = 0
        narrow = _apart(_used(run(images, size)), _used(self.module(images, size)), self.size[1])
        return max(whole, narrow, key=lambda apart: (math.isnan(apart), apart))

    def _detect(self, images: Tensor) -> Detections:
        """Returns the detector's own detections, with any score."""
        size = images.shape[2], images.shape[3]
        rpn, roi = self._detector.rpn_head, self._detector.roi_head
        maps = self._detector.pyramid(images)
        proposals = rpn.proposals(rpn(maps), [Frame(size, size)])
        ((boxes, probabilities),) = roi.classify(maps, proposals, [size])
        box, score, label = detect(boxes, probabilities, replace(roi.options.detection, score=0.0))
        (masks,) = roi.masks(maps, [box], [label])
        return Detections(box, score, label, masks)


def _used(outputs: Sequence[Tensor]) -> Detections:
    """Returns the detections among all entries; NaN counts as one."""
    found = Detections(*outputs)
    return found.first(int((~(found.scores <= 0)).sum()))


def _apart(first: Detections, second: Detections, side: int) -> float:
    """Returns the largest distance of a detection to its closest counterpart, both ways, without the 10% that match
    worst."""
    if not len(first.scores) or not len(second.scores):
        return 0.0 if len(first.scores) == len(second.scores) else math.inf
    apart = ((first.boxes[:, None] - second.boxes).abs() / side).amax(-1)
    apart = torch.maximum(apart, (first.scores[:, None] - second.scores).abs())
    if first.masks is not None and second.masks is not None:
        apart = torch.maximum(apart, (first.masks[:, None] - second.masks).abs().amax((-1, -2)))
    apart = torch.where(first.labels[:, None] == second.labels, apart, torch.inf)
    return max(_quantile(apart.amin(1)), _quantile(apart.amin(0)))


def _quantile(values: Tensor) -> float:
    """Returns the largest value without the highest 10%; NaN if there is one."""
    kept = values.sort().values[: max(1, round(len(values) * MATCHED))]
    return math.nan if values.isnan().any() else kept[-1].item()
