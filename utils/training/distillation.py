"""Distillation: a classifier learns from the labels and from a teacher (DeiT, arXiv 2012.12877, without its token)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.batches import Batch
from utils.precision import Precision
from utils.training.classification import Classification
from utils.training.objective import Evaluation


@dataclass(frozen=True)
class DistillationOptions:
    """`kind`: "soft" or "hard"; `alpha`: weight of the teacher's loss, between 0 and 1; `temperature`: by which the
    logits are divided, "soft" only."""

    kind: str
    alpha: float = 0.5
    temperature: float = 1.0

    @staticmethod
    def from_config(cfg: CfgNode) -> "DistillationOptions":
        own = cfg.DISTILLATION
        return DistillationOptions(own.KIND, own.ALPHA, own.TEMPERATURE)


class Distillation:
    """Classification with a teacher; evaluation is that of classification.

    Args: teacher: maps the student's images to logits (B, classes), without gradients.
    """

    def __init__(
        self,
        options: DistillationOptions,
        base: Classification,
        teacher: Callable[[Tensor], Tensor],
        precision: Precision,
    ):
        self._options, self._base, self._teacher, self._precision = options, base, teacher, precision
        self.best = base.best

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns (1 - alpha) * base + alpha * distillation, and both parts. Mixed images are mixed for the teacher
        too."""
        with self._precision.autocast():
            taught = self._teacher(batch.images)  # first: the student's activations take memory from here on
            logits = model(batch.images)
        base, own = self._base.criterion(logits, batch.targets), self._options
        distillation = distillation_loss(logits, taught, own)
        loss = (1 - own.alpha) * base + own.alpha * distillation
        return self._base.with_balance(model, {"loss": loss, "base": base, "distillation": distillation})

    @property
    def evaluation_batches(self) -> int:
        return self._base.evaluation_batches

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Evaluation | None:
        """See `Classification.evaluate`."""
        return self._base.evaluate(model, limit)


def distillation_loss(logits: Tensor, taught: Tensor, options: DistillationOptions) -> Tensor:
    """Returns the mean over the batch, in float32.

    "soft" (equation 2): the Kullback-Leibler divergence of the student's distribution from the teacher's, both at a
    temperature, times its square, so that the gradient keeps its size. "hard" (equation 3): the cross-entropy with the
    teacher's most probable class.

    Args: logits of the student, `taught` of the teacher, (B, classes) each.
    """
    logits, taught = logits.float(), taught.float()
    if options.kind == "hard":
        return F.cross_entropy(logits, taught.argmax(1))
    own, theirs = ((each / options.temperature).log_softmax(1) for each in (logits, taught))
    return F.kl_div(own, theirs, reduction="batchmean", log_target=True) * options.temperature**2
