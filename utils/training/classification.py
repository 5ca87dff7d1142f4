"""Image classification: smoothed cross-entropy, judged by top-1 accuracy."""

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.batches import Batch
from utils.distributed.world import World
from utils.evaluation.metrics import evaluate
from utils.evaluation.pictures import Gallery, answer_pictures
from utils.evaluation.routing import RoutingMeter, load_picture
from utils.precision import Precision
from utils.training.objective import Best, Evaluation


class Validation(Gallery, Protocol):
    """Batches (images, targets) of this rank's shard, and the images of the whole data set."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class Classification:
    """The objective of the Swin papers.

    Args: classes: of the model; label_smoothing: for hard labels (arXiv 1512.00567), mixed ones are smoothed already;
    val: None to train without validation.
    """

    best = Best("top1", title="validation accuracy, %", beside=("topk",))

    def __init__(
        self,
        classes: int,
        label_smoothing: float,
        *,
        val: Validation | None,
        precision: Precision,
        world: World,
    ):
        self._classes, self._smoothing, self._val = classes, label_smoothing, val
        self._precision, self._world = precision, world
        self._meter: RoutingMeter | None = None

    @staticmethod
    def from_config(
        cfg: CfgNode, val: Validation | None, gallery: Gallery, precision: Precision, world: World
    ) -> "Classification":
        """Args: gallery: names the classes."""
        classes, smoothing = len(gallery.class_names), cfg.MODEL.LABEL_SMOOTHING
        return Classification(classes, smoothing, val=val, precision=precision, world=world)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean cross-entropy in float32; for a mixture of experts also the "balance" loss, which is added,
        the share of tokens "dropped", and the load of the "busiest" expert, 1 for an even one."""
        with self._precision.autocast():
            logits = model(batch.images)
        return self.with_balance(model, {"loss": self.criterion(logits, batch.targets)})

    def criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `classification_loss`."""
        return classification_loss(logits, targets, self._smoothing)

    def with_balance(self, model: nn.Module, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the balance loss of the last forward pass of a mixture of experts to the loss, and parts to log."""
        self._meter = self._meter or RoutingMeter(model)
        routing = self._meter.add()
        if not routing:
            return losses
        balance = getattr(model, "module", model).balance_loss()  # type: ignore[operator]
        return {**losses, "loss": losses["loss"] + balance, "balance": balance, **routing}

    @property
    def evaluation_batches(self) -> int:
        return 0 if self._val is None else len(self._val)

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Evaluation | None:
        """Returns top-1, top-k and loss over the validation set."""
        routing = self._meter.result(self._world) if self._meter else None
        load = {} if routing is None else {"expert_load": lambda: load_picture(routing)}
        if self._val is None:
            return Evaluation({}, "", each_epoch=load) if load else None
        batches = self._val if limit is None else islice(self._val, limit)
        result, answers = evaluate(model, batches, self._classes, self._precision, self._world)
        scalars = {"loss": result.loss, "top1": result.top1, f"top{result.k}": result.topk}
        return Evaluation(result.as_dict(), result.line(), scalars, answer_pictures(answers, self._val), load)


def classification_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Returns the mean cross-entropy in float32.

    Args: logits (B, classes); targets int64 (B,), smoothed by `smoothing`, or float32 (B, classes) of mixed samples.
    """
    return F.cross_entropy(logits.float(), targets, label_smoothing=0.0 if targets.is_floating_point() else smoothing)
