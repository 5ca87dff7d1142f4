"""Operations on boxes (..., 4): x1, y1, x2, y2 in pixels, with sides x2 - x1 and y2 - y1.

Overlap, coding relative to reference boxes (arXiv 1311.2524, appendix C), and non-maximum suppression.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from utils.preprocessing import Size

EPSILON = 1e-6  # least union, in square pixels, as in the released models
MAX_LOG_RATIO = math.log(1000 / 16)  # of a decoded side to the reference's, in both directions
MAX_JOINT_NMS = 10_000  # boxes of all groups that are suppressed in one call


def full_precision(x: Tensor) -> Tensor:
    """Returns a tensor in float32, or float64 if it is: what half precision would round away decides here."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def area(boxes: Tensor) -> Tensor:
    """Returns the areas (...) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the intersection over union (n, m) of boxes (n, 4) with boxes (m, 4)."""
    inner, union = _intersection_and_union(first[:, None], second[None])
    return inner / union


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns GIoU (n,), -1 to 1, of pairs of boxes (n, 4) (arXiv 1902.09630)."""
    inner, union = _intersection_and_union(first, second)
    corners = torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])
    hull = area(torch.cat(corners, -1)).clamp(min=EPSILON)
    return inner / union - (hull - union) / hull


def _intersection_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    upper_left = torch.maximum(first[..., :2], second[..., :2])
    inner = (torch.minimum(first[..., 2:], second[..., 2:]) - upper_left).clamp(min=0).prod(-1)
    return inner, (area(first) + area(second) - inner).clamp(min=EPSILON)


def clip(boxes: Tensor, size: Size | Tensor) -> Tensor:
    """Clips boxes to an image of a height and width."""
    limit = size if isinstance(size, Tensor) else torch.tensor(size)
    return boxes.minimum(limit.flip(0).repeat(2).to(boxes)).clamp(min=0)


@dataclass(frozen=True)
class BoxCoder:
    """Codes boxes as deltas relative to reference boxes: shift of the centre over the side, log ratio of the sides.

    `stds`: divisors of the four deltas.
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, references: Tensor, boxes: Tensor) -> Tensor:
        """Returns the deltas (n, 4) from references (n, 4) to boxes (n, 4), all with an area."""
        (centre, side), (target, target_side) = _centre_and_side(references), _centre_and_side(boxes)
        deltas = torch.cat([(target - centre) / side, (target_side / side).log()], -1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, references: Tensor, deltas: Tensor) -> Tensor:
        """Returns boxes (..., 4) from references and deltas that broadcast against each other."""
        deltas = deltas * deltas.new_tensor(self.stds)
        centre, side = _centre_and_side(references)
        centre = centre + side * deltas[..., :2]
        half = side * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
        return torch.cat([centre - half, centre + half], -1)


def _centre_and_side(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Suppresses boxes that overlap one of the same group with a higher score by more than `iou`.

    Args: boxes (n, 4) float32, not negative; scores (n,); groups (n,) int64.
    Returns: int64 (k,), the boxes kept, highest score first.
    """
    if len(boxes) < MAX_JOINT_NMS:
        if not len(boxes):
            return groups
        # groups are moved apart; float32, like the released models: rounding may decide at the threshold
        offsets = groups.to(boxes.dtype) * (boxes.max() + 1)
        return nms(boxes + offsets[:, None], scores, iou)
    members = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
    kept = torch.cat([each[nms(boxes[each], scores[each], iou)] for each in members])
    return kept[scores[kept].argsort(descending=True, stable=True)]
