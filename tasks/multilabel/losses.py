"""Losses of images with several labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from yacs.config import CfgNode

from tasks.classification.losses import weighted_mean


@dataclass(frozen=True)
class LossOptions:
    """`name`: "bce" or "asymmetric", with its `gamma_neg`, `gamma_pos` and `clip`; `smoothing` of targets towards 0.5;
    `most`: upper limit of the weights of positive labels, 0 for no weights."""

    name: str = "bce"
    gamma_neg: float = 4.0
    gamma_pos: float = 1.0
    clip: float = 0.05
    smoothing: float = 0.0
    most: float = 0.0

    @staticmethod
    def from_config(cfg: CfgNode) -> "LossOptions":
        own = cfg.LOSS
        smoothing = cfg.MODEL.LABEL_SMOOTHING
        return LossOptions(own.MULTILABEL, own.GAMMA_NEG, own.GAMMA_POS, own.CLIP, smoothing, own.POSITIVE_WEIGHTS)

    @property
    def balances(self) -> bool:
        """Whether rare labels count more."""
        return self.name == "asymmetric" or self.most > 0


class MultiLabelLoss:
    """The mean loss of a batch in float32: binary cross-entropy averaged over the classes, or asymmetric loss summed
    over them, as in its paper.

    Args: counts: training samples with each label, of `size` samples; sample_weights (N,): with mean 1, or None.
    """

    def __init__(
        self,
        options: LossOptions,
        counts: Sequence[int] = (),
        size: int = 0,
        sample_weights: Tensor | None = None,
        device: torch.device | None = None,
    ):
        self._options, self._sample_weights = options, sample_weights
        self._positive = positive_weights(counts, size, options.most).to(device) if options.most and counts else None
        self._asymmetric = AsymmetricLossMultiLabel(
            options.gamma_neg,
            options.gamma_pos,
            options.clip,
            smoothing=options.smoothing,
            reduction="none",
            pos_weight=self._positive,
        )

    def __call__(self, logits: Tensor, targets: Tensor, samples: Sequence[int] = ()) -> Tensor:
        """Args: logits, targets (B, classes), targets between 0 and 1; samples: their indices in the training set."""
        logits = logits.float()
        if self._options.name == "asymmetric":
            losses = self._asymmetric(logits, targets).sum(1)
        else:
            smoothed = targets * (1 - self._options.smoothing) + 0.5 * self._options.smoothing
            terms = F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=self._positive, reduction="none")
            losses = terms.mean(1)
        return weighted_mean(losses, self._sample_weights, samples)


def positive_weights(counts: Sequence[int], size: int, most: float) -> Tensor:
    """Returns negatives / positives of each class, float32 (classes,), between 1 and `most`."""
    positives = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    return ((size - positives) / positives).clamp(min=min(1.0, most), max=most)
