"""Detection in regions of interest: one stage (Mask R-CNN), or a cascade of several (arXiv 1712.00726)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.detection import box_head, mask_head
from models.detection.assign import MatchOptions, Regions, SampleOptions, sample_regions
from models.detection.box_head import BoxHead, BoxHeadOptions, DetectionOptions, class_loss, detect, of_class
from models.detection.boxes import BoxCoder, clip
from models.detection.instances import Detections, Frame, Objects
from models.detection.mask_head import MaskHead, mask_loss, mask_targets
from models.detection.regions import pool_regions
from utils.preprocessing import Size

BoxLoss = Callable[[BoxHead, Tensor, Tensor, Tensor], Tensor]
SAMPLING, DETECTION = SampleOptions(512, 0.25), DetectionOptions()


@dataclass(frozen=True)
class StageOptions:
    """`matching`: of proposals and objects; `stds`: of the box deltas; `weight`: of the losses."""

    matching: MatchOptions
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    weight: float = 1.0


@dataclass(frozen=True)
class RoIOptions:
    """`stages`: one, or several that refine one another's boxes; `box_loss`: a sum over positives."""

    stages: tuple[StageOptions, ...]
    head: BoxHeadOptions
    box_loss: BoxLoss
    sampling: SampleOptions = SAMPLING
    detection: DetectionOptions = DETECTION


class Stage(NamedTuple):
    """A stage in use. `name`: precedes its losses' names; `mask`: None without masks."""

    name: str
    options: StageOptions
    box: BoxHead
    mask: MaskHead | None


class RoIHead(nn.Module):
    """Classes, boxes and masks of proposals. With several stages, their heads are numbered, as in released weights.

    Args: channels: of the pyramid; masks: whether there are mask heads.
    """

    def __init__(self, num_classes: int, options: RoIOptions, channels: int = 256, masks: bool = True):
        super().__init__()
        self.num_classes, self.options = num_classes, options
        boxes = [BoxHead(num_classes, channels, options.head, BoxCoder(stage.stds)) for stage in options.stages]
        self.bbox_head: nn.Module = boxes[0] if len(boxes) == 1 else nn.ModuleList(boxes)
        self.mask_head: nn.Module | None = None
        if masks:
            heads = [MaskHead(num_classes, channels) for _ in options.stages]
            self.mask_head = heads[0] if len(heads) == 1 else nn.ModuleList(heads)

    def stages(self) -> list[Stage]:
        """Returns the stages, first to last."""
        listed = []
        for i, options in enumerate(self.options.stages):
            several = isinstance(self.bbox_head, nn.ModuleList)
            box = self.bbox_head[i] if isinstance(self.bbox_head, nn.ModuleList) else self.bbox_head
            mask = self.mask_head[i] if isinstance(self.mask_head, nn.ModuleList) else self.mask_head
            assert isinstance(box, BoxHead) and (mask is None or isinstance(mask, MaskHead))
            listed.append(Stage(f"s{i}." if several else "", options, box, mask))
        return listed

    def losses(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        frames: Sequence[Frame],
        objects: Sequence[Objects],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Returns `loss_cls`, `loss_bbox` and `loss_mask`, of a cascade for each stage: `s0.loss_cls`, ..."""
        stages, losses = self.stages(), dict[str, Tensor]()
        for i, stage in enumerate(stages):
            regions = [
                sample_regions(boxes, truth, stage.options.matching, self.options.sampling, generator)
                for boxes, truth in zip(proposals, objects, strict=True)
            ]
            labels = [each.labels(truth, self.num_classes) for each, truth in zip(regions, objects, strict=True)]
            logits, deltas = stage.box(pool_regions(maps, [each.boxes for each in regions], box_head.POOLED))
            own = self._box_losses(stage, regions, objects, (torch.cat(labels), logits, deltas))
            if stage.mask is not None:
                own["loss_mask"] = _mask_loss(stage.mask, maps, regions, objects)
            losses |= {f"{stage.name}{name}": value * stage.options.weight for name, value in own.items()}
            if i + 1 < len(stages):
                proposals = self._refined(stage, regions, frames, (labels, logits, deltas))
        return losses

    def _box_losses(
        self,
        stage: Stage,
        regions: Sequence[Regions],
        objects: Sequence[Objects],
        outputs: tuple[Tensor, Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """Args: outputs: labels (N,), logits and deltas of all regions."""
        labels, logits, deltas = outputs
        positive = (labels < self.num_classes).nonzero()[:, 0]
        boxes = torch.cat([truth.boxes[each.matches] for each, truth in zip(regions, objects, strict=True)])
        own = torch.cat([each.positives for each in regions])
        total = self.options.box_loss(stage.box, own, of_class(deltas[positive], labels[positive]), boxes)
        return {"loss_cls": class_loss(logits, labels), "loss_bbox": total / max(1, len(labels))}

    @torch.no_grad()
    def _refined(
        self,
        stage: Stage,
        regions: Sequence[Regions],
        frames: Sequence[Frame],
        outputs: tuple[Sequence[Tensor], Tensor, Tensor],
    ) -> list[Tensor]:
        """Returns the proposals of the next stage: the boxes predicted for the regions that are no object's own box.

        Args: outputs: labels (n,) of each image, logits and deltas of all regions.
        """
        labels, logits, deltas = outputs
        counts, refined = [len(each.boxes) for each in regions], []
        predicted = logits[:, :-1].argmax(1).split(counts)
        for i, (own, delta) in enumerate(zip(regions, deltas.split(counts), strict=True)):
            chosen = torch.where(labels[i] == self.num_classes, predicted[i], labels[i])
            kept = torch.cat([~own.added, own.added.new_ones(counts[i] - len(own.added))])
            refined.append(stage.box.refine(own.boxes, delta, chosen, frames[i].size)[kept])
        return refined

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], proposals: Sequence[Tensor], frames: Sequence[Frame]) -> list[Detections]:
        """Returns the detections of each image, in the original image's coordinates."""
        found = [
            detect(*each, self.options.detection)
            for each in self.classify(maps, proposals, [frame.size for frame in frames])
        ]
        masks = self.masks(maps, [box for box, _, _ in found], [label for _, _, label in found])
        return [
            Detections(frame.to_original(box), score, label, mask)
            for (box, score, label), frame, mask in zip(found, frames, masks, strict=True)
        ]

    def classify(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size | Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Returns a box for each class, (n, classes, 4), and probabilities (n, classes) of each image's proposals.

        Logits are averaged over the stages, boxes come from the last one. Args: sizes: height and width of each image.
        """
        counts, stages = [len(boxes) for boxes in proposals], self.stages()
        total, boxes = torch.zeros((), device=maps[0].device), list(proposals)
        for i, stage in enumerate(stages):
            logits, deltas = stage.box(pool_regions(maps, boxes, box_head.POOLED))
            total = total + logits
            if i + 1 < len(stages):
                chosen = logits[:, :-1].argmax(1).split(counts)
                parts = zip(boxes, deltas.split(counts), chosen, sizes, strict=True)
                boxes = [stage.box.refine(*each) for each in parts]
        probabilities = (total / len(stages)).softmax(1)[:, :-1].split(counts)
        decode = stages[-1].box.coder.decode
        last = zip(boxes, deltas.split(counts), sizes, strict=True)
        decoded = [clip(decode(box[:, None], delta), size) for box, delta, size in last]
        return list(zip(decoded, probabilities, strict=True))

    def count(self, x: Tensor, proposals: int) -> None:
        """Performs the operations of the heads on meta tensors. Args: x: a map of the pyramid; proposals: of all its
        images."""
        masks = len(x) * self.options.detection.count
        for stage in self.stages():
            stage.box(x.new_empty(proposals, x.shape[1], box_head.POOLED, box_head.POOLED))
            if stage.mask is not None:
                stage.mask(x.new_empty(masks, x.shape[1], mask_head.POOLED, mask_head.POOLED))

    def masks(self, maps: Sequence[Tensor], boxes: list[Tensor], labels: list[Tensor]) -> Sequence[Tensor | None]:
        """Returns probabilities (n, 28, 28) for each image, averaged over the stages; None without mask heads."""
        heads = [stage.mask for stage in self.stages() if stage.mask is not None]
        if not heads:
            return [None] * len(boxes)
        pooled, label = pool_regions(maps, boxes, mask_head.POOLED), torch.cat(labels)
        probabilities = torch.stack([of_class(head(pooled), label).sigmoid() for head in heads]).mean(0)
        return probabilities.split([len(each) for each in boxes])


def _mask_loss(
    head: MaskHead, maps: Sequence[Tensor], regions: Sequence[Regions], objects: Sequence[Objects]
) -> Tensor:
    positives, matches = [each.positives for each in regions], [each.matches for each in regions]
    labels = torch.cat([truth.labels[matched] for truth, matched in zip(objects, matches, strict=True)])
    logits = head(pool_regions(maps, positives, mask_head.POOLED))
    return mask_loss(logits, mask_targets(objects, positives, matches, logits.shape[-1]), labels)
