"""Detections of an image as plain values, in COCO's results format, and encoded masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sources.run_lengths import RunLengths
from models.detection.instances import Detections
from models.detection.mask_head import paste
from utils.preprocessing import Size


def as_results(found: Detections, size: Size, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Returns an entry for each detection: `category_id`, `bbox` (x, y, width, height), `score` and `segmentation`.

    Masks are pasted and encoded one at a time. Args: size: height and width of the stored image.
    """
    results = []
    boxes, scores, labels = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
    for i, ((x1, y1, x2, y2), score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
        entry = {"category_id": category_ids[label], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        if found.masks is not None:
            entry["segmentation"] = encoded(paste(found.masks[i], found.boxes[i], size).cpu().numpy())
        results.append(entry)
    return results


def encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Returns a mask (H, W) as run lengths in COCO's format."""
    runs = RunLengths.of(mask)
    return {"size": list(runs.size), "counts": runs.text()}
