"""The loss of training."""

import torch.nn.functional as F
from torch import Tensor


def training_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy in float32.

    Args: logits (B, classes); targets int64 (B,), smoothed by `smoothing` (arXiv 1512.00567), or float32 (B, classes)
    of mixed samples, which are smoothed already.
    """
    return F.cross_entropy(logits.float(), targets, label_smoothing=0.0 if targets.is_floating_point() else smoothing)
