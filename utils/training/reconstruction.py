"""SimMIM pre-training (arXiv 2111.09886): masked pixels are predicted, judged by the mean absolute error."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.evaluation.predict import evaluating, in_step, progress_of
from utils.pictures import hide, in_pixels, restore, sheet, to_image
from utils.precision import Precision
from utils.preprocessing import Preprocessing
from utils.training.objective import Best, Evaluation

SHOWN = 8  # images on the sheet


class Images(Protocol):
    """Batches (images, labels) of this rank's shard, label -1 for images that could not be read; samples of the whole
    data set by their numbers."""

    samples: int
    preprocessing: Preprocessing

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def normalized(self, numbers: Sequence[int]) -> Tensor:
        """Returns samples as the model sees them: float32 (n, C, H, W). Raises: DataError."""
        ...

    def masks(self, numbers: Sequence[int]) -> Tensor:
        """Returns the masks of samples, the same in every evaluation: bool (n, h, w) over squares."""
        ...


@dataclass(frozen=True)
class ReconstructionOptions:
    """`side`: of the square neighbourhood, in pixels, by whose mean and deviation the target is normalised (the recipe
    of Swin V2); 0: not at all."""

    side: int = 0

    @staticmethod
    def from_config(cfg: CfgNode) -> "ReconstructionOptions":
        own = cfg.MODEL.SIMMIM.NORM_TARGET
        return ReconstructionOptions(own.PATCH_SIZE if own.ENABLE else 0)


class Reconstruction:
    """The objective of SimMIM. Args: val: None to train without validation; shown: images for each epoch's sheet."""

    def __init__(
        self,
        options: ReconstructionOptions,
        *,
        val: Images | None,
        shown: Images,
        precision: Precision,
        world: World,
    ):
        self._side, self._val, self._shown = options.side, val, shown
        self._precision, self._world = precision, world
        self.best = None if val is None else Best("loss", higher_is_better=False, title="validation loss")

    @staticmethod
    def from_config(
        cfg: CfgNode, val: Images | None, gallery: Images, precision: Precision, world: World
    ) -> "Reconstruction":
        """Args: gallery: images for the sheet of each epoch."""
        options = ReconstructionOptions.from_config(cfg)
        return Reconstruction(options, val=val, shown=gallery, precision=precision, world=world)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean absolute error of masked pixels. The targets of the batch are its masks."""
        with self._precision.autocast():
            predicted = model(batch.images, batch.targets)
        return {"loss": masked_error(predicted, batch.images, batch.targets, self._side).mean()}

    @property
    def evaluation_batches(self) -> int:
        return 0 if self._val is None else len(self._val)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, limit: int | None = None) -> Evaluation:
        """Returns the loss over the validation set, if there is one, and a sheet of images."""
        with evaluating(model):
            pictures = {"reconstruction": self._sheet(model)}
            if self._val is None:
                return Evaluation({}, "", each_epoch=pictures)
            loss = self._validation_loss(model, self._val, limit)
        return Evaluation({"loss": loss}, f"validation loss {loss:.4f}", each_epoch=pictures)

    def _validation_loss(self, model: nn.Module, val: Images, limit: int | None) -> float:
        """Returns the mean over the samples of all ranks. Raises: DataError if none could be read."""
        world, done = self._world, 0
        sums = torch.zeros(2, dtype=torch.float64)

        def forward(images: Tensor) -> None:
            self._predict(model, images, val.masks([0]))

        for images, labels in in_step(model, islice(progress_of(val), limit), forward, world):
            numbers = range(world.rank + done * world.size, val.samples, world.size)[: len(images)]
            errors = self._errors(model, images, val.masks(numbers))
            counted = labels >= 0
            sums += torch.tensor([errors[counted].sum().item(), counted.sum().item()])
            done += len(images)
        total, seen = world.gather(sums).sum(0).tolist()
        if not seen:
            raise DataError("no sample was evaluated: DATA.DATA_PATH: none of the validation images could be read")
        return total / seen

    def _predict(self, model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        with self._precision.autocast():
            return model(images, masks.to(images.device)).float()

    def _errors(self, model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        return masked_error(self._predict(model, images, masks), images, masks.to(images.device), self._side)

    def _sheet(self, model: nn.Module) -> Callable[[], Image.Image]:
        """Computes what the sheet shows, on every rank; returns the function that draws it."""
        shown, columns = self._shown, min(SHOWN, self._shown.samples)
        numbers = [i * shown.samples // columns for i in range(columns)]
        images, masks = shown.normalized(numbers), shown.masks(numbers)
        mean, deviation = neighbourhood(images, self._side)
        predicted = self._predict(model, images, masks) * deviation + mean
        hidden = in_pixels(masks.to(images.device), images)
        originals, predictions = restore(images, shown.preprocessing), restore(predicted, shown.preprocessing)
        rows = {
            "original": originals,
            "masked": hide(originals, masks.to(images.device)),
            "reconstructed": torch.where(hidden, predictions, originals),
        }
        tiles = [(to_image(image), name) for name, pixels in rows.items() for image in pixels]
        return lambda: sheet(tiles, "Reconstruction", "masked pixels as the model predicts them", columns=columns)


def masked_error(predicted: Tensor, images: Tensor, mask: Tensor, side: int = 0) -> Tensor:
    """Returns the mean absolute error over the masked pixels of every image, in float32: (B,).

    Args: predicted, images (B, C, H, W); mask bool (B, h, w) over squares; side: of the neighbourhood that normalises
    the target, 0 for none.
    """
    mean, deviation = neighbourhood(images, side)
    hidden = in_pixels(mask, images)
    errors = (predicted.float() - (images - mean) / deviation).abs() * hidden
    return errors.sum((1, 2, 3)) / (hidden.sum((1, 2, 3)) + 1e-5) / images.shape[1]


def neighbourhood(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation around every pixel, float32 (B, C, H, W); 0 and 1 if `side` is 0.

    The neighbourhood is a square with the pixel at its centre, without what is beyond the edge; its variance is
    unbiased.
    """
    if not side:
        return torch.zeros((), device=images.device), torch.ones((), device=images.device)

    def sums(values: Tensor) -> Tensor:  # rows, then columns: side + side additions instead of side x side
        for kernel, padding in (((side, 1), (side // 2, 0)), ((1, side), (0, side // 2))):
            values = F.avg_pool2d(values, kernel, 1, padding, divisor_override=1)
        return values

    images = images.float()
    count = sums(torch.ones_like(images[:1, :1]))
    mean = sums(images) / count
    variance = (sums(images.square()) / count - mean.square()) * count / (count - 1)
    return mean, (variance.clamp(min=0) + 1e-6).sqrt()
