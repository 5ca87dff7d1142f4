"""Assignment of boxes to objects by their overlap, and random selection of the boxes that are trained."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.detection.boxes import pairwise_iou
from models.detection.instances import Objects

NEGATIVE, IGNORED = -1, -2


@dataclass(frozen=True)
class MatchOptions:
    """Thresholds on IoU. `positive`: at least; `negative`: below; boxes between the two are ignored; `best`: the boxes
    that overlap an object most, ties included, are positive if their IoU is at least this; None: no such rule."""

    positive: float
    negative: float
    best: float | None = None


@dataclass(frozen=True)
class SampleOptions:
    """`count`: boxes per image; `positives`: their maximum share."""

    count: int
    positives: float


def match(boxes: Tensor, objects: Tensor, options: MatchOptions) -> Tensor:
    """Assigns boxes (n, 4) to the objects (m, 4) they overlap most.

    Returns: int64 (n,): index of the object, NEGATIVE or IGNORED.
    """
    found = torch.full((len(boxes),), NEGATIVE, device=boxes.device)
    if not len(objects) or not len(boxes):
        return found
    overlaps = pairwise_iou(objects, boxes)
    most, nearest = overlaps.max(0)
    found[most >= options.negative] = IGNORED
    positive = most >= options.positive
    found[positive] = nearest[positive]
    if options.best is not None:
        best = overlaps.amax(1, keepdim=True)
        owners = (overlaps == best) & (best >= options.best)
        # the last of several objects for which a box is best
        numbers = torch.arange(len(objects), device=boxes.device)[:, None]
        found = torch.where(owners, numbers, NEGATIVE).amax(0).where(owners.any(0), found)
    return found


def select(found: Tensor, options: SampleOptions, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draws positive and negative boxes; negatives fill up the count.

    Args: found: of `match`; generator: on the CPU, so that draws do not depend on the device; None: torch's own.
    Returns: int64 indices of the positives and of the negatives, ascending.
    """
    positive = _draw((found >= 0).nonzero()[:, 0], int(options.count * options.positives), generator)
    return positive, _draw((found == NEGATIVE).nonzero()[:, 0], options.count - len(positive), generator)


def _draw(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    if len(indices) <= count:
        return indices
    order = torch.randperm(len(indices), generator=generator)[:count]
    return indices[order.sort().values.to(indices.device)]


@dataclass(frozen=True)
class Regions:
    """Regions of interest that are trained in one image, positives first.

    `boxes` (n, 4); `matches` (p,): object of each positive; `added` (p,): whether a positive is the object's own box.
    """

    boxes: Tensor
    matches: Tensor
    added: Tensor

    @property
    def positives(self) -> Tensor:
        """Boxes (p, 4) of the positives."""
        return self.boxes[: len(self.matches)]

    def labels(self, objects: Objects, background: int) -> Tensor:
        """Returns the class (n,) of every region."""
        labels = objects.labels.new_full((len(self.boxes),), background)
        labels[: len(self.matches)] = objects.labels[self.matches]
        return labels


def sample_regions(
    proposals: Tensor,
    objects: Objects,
    matching: MatchOptions,
    options: SampleOptions,
    generator: torch.Generator | None = None,
) -> Regions:
    """Draws the regions that are trained from proposals (n, 4) and the objects' own boxes."""
    count = len(objects.boxes)
    own = torch.arange(count, device=proposals.device)
    found = torch.cat([own, match(proposals, objects.boxes, matching)])
    positive, negative = select(found, options, generator)
    boxes = torch.cat([objects.boxes, proposals])
    return Regions(boxes[torch.cat([positive, negative])], found[positive], positive < count)
