"""Region proposal network (arXiv 1506.01497), as released with Swin's detectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detection.anchors import RATIOS, anchors_of, usable
from models.detection.assign import MatchOptions, SampleOptions, match, select
from models.detection.boxes import BoxCoder, clip, full_precision, grouped_nms
from models.detection.instances import Frame, Objects
from utils.preprocessing import Size


@dataclass(frozen=True)
class ProposalOptions:
    """`per_level`: top scores of each level that enter NMS; `count`: proposals per image; `iou`: NMS threshold."""

    per_level: int
    count: int = 1000
    iou: float = 0.7


TRAINING, EVALUATION = ProposalOptions(2000), ProposalOptions(1000)
MATCHING, SAMPLING = MatchOptions(0.7, 0.3, 0.3), SampleOptions(256, 0.5)


@dataclass(frozen=True)
class RPNOptions:
    """`inside`: train only anchors within the image; `beta`: threshold of smooth L1, 0 for L1; others: selection of
    anchors for the losses, and of proposals in training and evaluation."""

    inside: bool = False
    beta: float = 0.0
    matching: MatchOptions = MATCHING
    sampling: SampleOptions = SAMPLING
    training: ProposalOptions = TRAINING
    evaluation: ProposalOptions = EVALUATION


@dataclass(frozen=True)
class Predicted:
    """Outputs for each level: `anchors` (n, 4), `logits` (B, n), `deltas` (B, n, 4), the latter two float32; `sizes`
    of the maps."""

    anchors: list[Tensor]
    logits: list[Tensor]
    deltas: list[Tensor]
    sizes: list[tuple[int, int]]


class RPNHead(nn.Module):
    """Scores anchors and predicts boxes from them, with the same layers on every level. Args: channels: of the maps."""

    def __init__(self, channels: int = 256, options: RPNOptions | None = None):
        super().__init__()
        self.options, self.coder = options or RPNOptions(), BoxCoder()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, len(RATIOS), 1)
        self.rpn_reg = nn.Conv2d(channels, len(RATIOS) * 4, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> Predicted:
        """Maps the pyramid, (B, C, H_i, W_i) each, to predictions for all anchors."""
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        hidden = [F.relu(self.rpn_conv(x)) for x in maps]
        logits = [full_precision(self.rpn_cls(x)).permute(0, 2, 3, 1).flatten(1) for x in hidden]
        deltas = [full_precision(self.rpn_reg(x)).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in hidden]
        return Predicted(anchors_of(sizes, logits[0]), logits, deltas, sizes)

    def losses(
        self,
        predicted: Predicted,
        frames: Sequence[Frame],
        objects: Sequence[Objects],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Returns `loss_rpn_cls` and `loss_rpn_bbox`: sums over the sampled anchors, divided by their number."""
        anchors, logits = torch.cat(predicted.anchors), torch.cat(predicted.logits, 1)
        deltas = torch.cat(predicted.deltas, 1)
        score = logits.sum() * 0  # a gradient of zero where nothing is drawn
        shift, count = deltas.sum() * 0, 0
        for i, (frame, truth) in enumerate(zip(frames, objects, strict=True)):
            mask = torch.cat(usable(predicted.anchors, predicted.sizes, frame, self.options.inside))
            index = mask.nonzero()[:, 0]
            found = match(anchors[index], truth.boxes, self.options.matching)
            positive, negative = select(found, self.options.sampling, generator)
            matched = truth.boxes[found[positive]]
            positive, negative = index[positive], index[negative]
            score = score + binary_loss(logits[i, positive], 1) + binary_loss(logits[i, negative], 0)
            wanted = self.coder.encode(anchors[positive], matched)
            shift = shift + box_distance(deltas[i, positive], wanted, self.options.beta)
            count += max(1, len(positive)) + max(1, len(negative))
        return {"loss_rpn_cls": score / count, "loss_rpn_bbox": shift / count}

    @torch.no_grad()
    def proposals(self, predicted: Predicted, frames: Sequence[Frame]) -> list[Tensor]:
        """Returns the best boxes (n, 4) of each image, highest score first, clipped to the image."""
        options = self.options.training if self.training else self.options.evaluation
        return [self._propose(predicted, i, frame, options) for i, frame in enumerate(frames)]

    def _propose(self, predicted: Predicted, image: int, frame: Frame, options: ProposalOptions) -> Tensor:
        box, score, level = self.candidates(predicted, image, frame.size, options)
        valid = (box[:, 2:] > box[:, :2]).all(1)
        box, score, level = box[valid], score[valid], level[valid]
        return box[grouped_nms(box, score, level, options.iou)[: options.count]]

    def candidates(
        self, predicted: Predicted, image: int, size: Size | Tensor, options: ProposalOptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the boxes (n, 4) that enter NMS, clipped to the image's height and width, with their scores (n,) and
        levels (n,)."""
        boxes, scores, levels = [], [], []
        for i, (anchors, logits, deltas) in enumerate(
            zip(predicted.anchors, predicted.logits, predicted.deltas, strict=True)
        ):
            score, order = logits[image].sigmoid().sort(descending=True, stable=True)
            order = order[: options.per_level]
            boxes.append(self.coder.decode(anchors[order], deltas[image, order]))
            scores.append(score[: options.per_level])
            levels.append(torch.full_like(order, i))
        return clip(torch.cat(boxes), size), torch.cat(scores), torch.cat(levels)


def binary_loss(logits: Tensor, target: int) -> Tensor:
    """Returns the sum of binary cross-entropies with the same target for all logits."""
    return F.softplus(-logits if target else logits).sum()


def box_distance(deltas: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Returns the sum of smooth L1 distances, or of L1 distances if `beta` is 0."""
    return F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=beta)
