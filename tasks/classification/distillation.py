"""Distillation losses of a classifier (DeiT, arXiv 2012.12877, without the distillation token)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode


@dataclass(frozen=True)
class DistillationOptions:
    """`kind`: "soft", "hard" or "none"; `alpha`: weight of the teacher's loss, between 0 and 1; `temperature` of the
    softmax, for "soft" only."""

    kind: str
    alpha: float = 0.5
    temperature: float = 1.0

    @staticmethod
    def from_config(cfg: CfgNode) -> "DistillationOptions":
        own = cfg.DISTILLATION
        return DistillationOptions(own.KIND, own.ALPHA, own.TEMPERATURE)


def distilled(base: Tensor, logits: Tensor, taught: Tensor, options: DistillationOptions) -> dict[str, Tensor]:
    """Returns "loss", (1 - alpha) * base + alpha * distillation, and both parts.

    Args: base: the loss on the labels; logits, taught: the student's and the teacher's logits, (B, classes) each.
    """
    distillation = distillation_loss(logits, taught, options)
    loss = (1 - options.alpha) * base + options.alpha * distillation
    return {"loss": loss, "base": base, "distillation": distillation}


def distillation_loss(logits: Tensor, taught: Tensor, options: DistillationOptions) -> Tensor:
    """Returns the mean over the batch, in float32.

    "soft" (equation 2): the KL divergence of the student's distribution from the teacher's at a temperature, times the
    squared temperature to keep the gradients' scale. "hard" (equation 3): cross-entropy with the teacher's top class.

    Args: logits, taught: the student's and the teacher's logits, (B, classes) each.
    """
    logits, taught = logits.float(), taught.float()
    if options.kind == "hard":
        return F.cross_entropy(logits, taught.argmax(1))
    own, theirs = ((each / options.temperature).log_softmax(1) for each in (logits, taught))
    return F.kl_div(own, theirs, reduction="batchmean", log_target=True) * options.temperature**2
