"""Classes and boxes of regions of interest: the heads of Fast R-CNN and Cascade R-CNN, as released with Swin."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detection.boxes import BoxCoder, clip, full_precision, generalized_iou, grouped_nms
from models.heads.upernet import ConvNorm
from utils.preprocessing import Size

POOLED = 7  # side of a region's map


@dataclass(frozen=True)
class BoxHeadOptions:
    """`convs`: convolutions with batch norm before `fcs` linear layers of `width` outputs."""

    convs: int = 0
    fcs: int = 2
    width: int = 1024


class BoxHead(nn.Module):
    """Layers on a region's map, then a classifier with the background last, and a box for each class.

    Args: channels: of the maps and the convolutions; coder: of the boxes, relative to the regions.
    """

    def __init__(self, num_classes: int, channels: int, options: BoxHeadOptions, coder: BoxCoder):
        super().__init__()
        self.num_classes, self.coder = num_classes, coder
        self.shared_convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in range(options.convs))
        inputs = [channels * POOLED**2] + [options.width] * (options.fcs - 1)
        self.shared_fcs = nn.ModuleList(nn.Linear(each, options.width) for each in inputs)
        self.fc_cls = nn.Linear(options.width, num_classes + 1)
        self.fc_reg = nn.Linear(options.width, num_classes * 4)
        for layer in self.shared_fcs:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps regions (N, C, 7, 7) to logits (N, classes + 1) and deltas (N, classes, 4), both float32."""
        for conv in self.shared_convs:
            x = conv(x)
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        logits, deltas = full_precision(self.fc_cls(x)), full_precision(self.fc_reg(x))
        return logits, deltas.view(-1, self.num_classes, 4)

    def refine(self, boxes: Tensor, deltas: Tensor, labels: Tensor, size: Size | Tensor) -> Tensor:
        """Returns regions (n, 4) moved to their predicted boxes, clipped to the image.

        Args: labels (n,): the class whose box is taken.
        """
        return clip(self.coder.decode(boxes, of_class(deltas, labels)), size)


def of_class(values: Tensor, labels: Tensor) -> Tensor:
    """Returns values (n, ...) of one class each, from (n, classes, ...) and labels (n,)."""
    return values[torch.arange(len(labels), device=labels.device), labels]


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy, a mean over all regions, 0 without any."""
    return F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))


def delta_loss(head: BoxHead, regions: Tensor, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Returns the sum of L1 distances between deltas (p, 4) and the targets that map regions to boxes (p, 4)."""
    return (deltas - head.coder.encode(regions, boxes)).abs().sum()


def giou_loss(head: BoxHead, regions: Tensor, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Returns ten times the sum of 1 - GIoU of decoded, unclipped deltas (p, 4) and boxes (p, 4)."""
    return 10 * (1 - generalized_iou(head.coder.decode(regions, deltas), boxes)).sum()


@dataclass(frozen=True)
class DetectionOptions:
    """`score`: least probability, exclusive; `iou`: NMS threshold within a class; `count`: detections per image."""

    score: float = 0.05
    iou: float = 0.5
    count: int = 100


def detect(boxes: Tensor, probabilities: Tensor, options: DetectionOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Selects detections from boxes (n, classes, 4) and probabilities (n, classes).

    Returns: boxes (k, 4), scores (k,), labels (k,), highest score first.
    """
    region, label = (probabilities > options.score).nonzero(as_tuple=True)
    box, score = boxes[region, label], probabilities[region, label]
    kept = grouped_nms(box, score, label, options.iou)[: options.count]
    return box[kept], score[kept], label[kept]
