"""mIoU, mean and overall pixel accuracy from an exact confusion matrix over all ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.loaders import EvalLoader
from data.pipeline.label_maps import IGNORED, Colour
from tasks.segmentation.pictures import Example, confusion_figure, overlay_sheet
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.pictures import restore
from utils.preprocessing import Preprocessing
from utils.training.objective import Evaluation, Table

SHOWN = 6  # images of the pictures of predictions and of the worst
CONFUSABLE = 60  # classes in a picture of the confusion matrix, at most


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts pixels by true class (rows) and predicted class: int64 (classes, classes), without ignored pixels.

    Args: labels, predicted: uint8 of equal shape.
    """
    counted = labels != IGNORED
    pairs = labels[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def class_scores(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns IoU and accuracy of every class in percent, float64; NaN for a class that is neither present nor
    predicted, or not present."""
    matrix = matrix.double()
    right, present, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return 100 * right / (present + predicted - right), 100 * right / present


class SegmentationEvaluator:
    """Accumulates the confusion matrix of this rank, and a few predictions to draw: the first, and those with the
    fewest right pixels."""

    def __init__(
        self, val: EvalLoader, class_names: Sequence[str], colours: Sequence[Colour], preprocessing: Preprocessing
    ):
        self._val, self._names, self._colours, self._preprocessing = (
            val,
            list(class_names),
            list(colours),
            preprocessing,
        )
        self._matrix: Tensor | None = None
        self._samples = 0
        self._drawn: list[Example] = []
        self._worst: list[tuple[float, Example]] = []

    def update(self, outputs: Sequence[Tensor], batch: Batch) -> None:
        views = len(batch.images) // max(1, len(outputs))
        for i, (predicted, target) in enumerate(zip(outputs, batch.targets, strict=True)):
            if "labels" not in target:
                raise DataError(self._val.source.name(batch.samples[i]), "has no label map", "evaluate labelled images")
            own = confusion_matrix(target["labels"], predicted, len(self._names))
            self._matrix = own if self._matrix is None else self._matrix + own
            self._samples += 1
            counted = int(own.sum())
            right = int(own.diagonal().sum()) / counted if counted else 1.0
            is_bad = len(self._worst) < SHOWN or right < self._worst[-1][0]
            if len(self._drawn) < SHOWN or is_bad:
                image = restore(batch.images[i * views][None], self._preprocessing)[0].cpu()
                name = self._val.source.name(batch.samples[i])
                example = image, target["labels"].cpu(), predicted.cpu(), name
                self._drawn = [*self._drawn, example][:SHOWN]
                self._worst = sorted([*self._worst, (right, example)], key=lambda each: each[0])[:SHOWN]

    def compute(self, world: World) -> Evaluation:
        """Adds the matrices of all ranks. Raises: DataError if no pixel was counted."""
        classes = len(self._names)
        own = torch.zeros(classes, classes, dtype=torch.int64) if self._matrix is None else self._matrix
        own = torch.cat([own.flatten().to(world.device), torch.tensor([self._samples], device=world.device)])
        sums = world.gather(own).sum(0).long()  # exact: counts below 2**53
        matrix, samples = sums[:-1].view(classes, classes), int(sums[-1])
        if not int(matrix.sum()):
            raise DataError("DATA.DATA_PATH", "no labelled pixel could be evaluated", "check the label maps")
        iou, accuracy = class_scores(matrix)
        metrics = {
            "miou": iou.nanmean().item(),
            "macc": accuracy.nanmean().item(),
            "aacc": 100 * int(matrix.diagonal().sum()) / int(matrix.sum()),
        }
        line = f"mIoU {metrics['miou']:.2f} mAcc {metrics['macc']:.2f} aAcc {metrics['aacc']:.2f} on {samples:,} images"
        pictures = {
            "predictions": lambda: overlay_sheet(self._drawn, self._colours),
            "worst": lambda: overlay_sheet([each for _, each in self._worst], self._colours, "Worst images"),
        }
        if classes <= CONFUSABLE:
            pictures["confusion"] = lambda: confusion_figure(matrix, self._names)
        table = per_class_table(matrix, self._names)
        return Evaluation(metrics, line, samples=samples, tables={"per_class": table}, pictures=pictures)


def per_class_table(matrix: Tensor, class_names: Sequence[str]) -> Table:
    """Returns a row per class: name, IoU, accuracy, share of the labelled and of the predicted pixels, in percent, and
    the class its pixels are most often mistaken for."""
    iou, accuracy = class_scores(matrix)
    total = matrix.sum().double()
    wrong = matrix - torch.diag(matrix.diagonal())
    shares = [100 * matrix.sum(axis) / total for axis in (1, 0)]
    rows = []
    for label, name in enumerate(class_names):
        mistaken = class_names[int(wrong[label].argmax())] if int(wrong[label].sum()) else ""
        values = [each[label].item() for each in (iou, accuracy, *shares)]
        rows.append([name, *("" if value != value else f"{value:.2f}" for value in values), mistaken])
    return Table(["class", "iou", "accuracy", "pixels", "predicted", "mostly_mistaken_for"], rows)
