"""SimMIM pre-training (arXiv 2111.09886): masked pixels are predicted, evaluated by the mean absolute error."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from data.loaders import EvalLoader, Pipeline
from data.sources.open import SourceOptions
from models.backbone import SwinBackbone
from models.registry import build
from models.weights.load import load_contents
from tasks.base import SHOWN, Task, TaskData
from tasks.simmim.images import ImageInfo, folders_of, open_images
from tasks.simmim.masking import Masking, MaskingOptions
from tasks.simmim.model import SimMIM
from tasks.simmim.pictures import masked_sheet, reconstruction_sheet
from tasks.simmim.reconstruction import masked_error, neighbourhood
from utils.batches import Batch, stacked
from utils.distributed.world import World
from utils.errors import ConfigError, DataError
from utils.pictures import Pictures
from utils.runs.provenance import DataInfo
from utils.training.evaluate import evaluating
from utils.training.objective import Best, Evaluation

log = logging.getLogger(__name__)
ON_SHEET = 8  # images in the reconstruction picture


class Outputs(NamedTuple):
    """`predicted` images, float32 (B, C, H, W), and the error of each, (B,)."""

    predicted: Tensor
    errors: Tensor


class Reconstruction(Task):
    """The SimMIM task."""

    name = "simmim"
    best = Best("loss", higher_is_better=False, title="validation loss")
    predicts = False

    def __init__(self, cfg: CfgNode, world: World, contents: Mapping[str, Any] | None = None) -> None:
        super().__init__(cfg, world, contents)
        norm = cfg.MODEL.SIMMIM.NORM_TARGET
        self._side = norm.PATCH_SIZE if norm.ENABLE else 0
        self._masking = Masking(MaskingOptions.from_config(cfg))

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> TaskData:
        data = open_images(SourceOptions.from_config(self.cfg), splits, self.world)
        source = data.val if data.train is None else data.train
        upright = self.turns([] if source is None else folders_of(source))
        return replace(data, info=replace(data.info, upright=upright))

    def stored_info(self, origin: str) -> ImageInfo:
        return ImageInfo(upright=self.turns())

    def pipeline(self, info: DataInfo) -> Pipeline:
        return self.image_pipeline(self._masking, info)

    def new_model(self, info: ImageInfo | None) -> nn.Module:  # type: ignore[override]
        encoder = build(self.options, info.classes if info else 0)
        if not isinstance(encoder, SwinBackbone):
            raise ConfigError("MODEL.TYPE", "SimMIM pre-trains only Swin models", "set it to swin or swinv2")
        return SimMIM(encoder, self.cfg.DATA.MASK_PATCH_SIZE, self.cfg.MODEL.SIMMIM.DECAY_POSITION_BIAS)

    def load(self, model: nn.Module, contents: Mapping[str, Any], origin: str, info: DataInfo | None = None) -> str:
        """Loads weights; with `info`, the encoder accepts any Swin."""
        encoder_only = None if info is None else ()
        return load_contents(model, contents, origin, encoder_only, self.cfg.MODEL.TABLE_INTERPOLATION)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean absolute error of masked pixels; the targets of the batch are its masks."""
        with self.precision.autocast():
            predicted = model(stacked(batch), batch.targets)
        return {"loss": masked_error(predicted, stacked(batch), batch.targets, self._side).mean()}

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Runs the model with the masks of the samples, fixed across evaluations."""
        images = stacked(batch)
        masks = self._masking.fixed(batch.samples).to(images.device)
        with self.precision.autocast():
            predicted = model(images, masks).float()
        return Outputs(predicted, masked_error(predicted, images, masks, self._side))

    def evaluator(self, val: EvalLoader, info: DataInfo) -> "MeanError":
        return MeanError()

    def show_batch(self, batch: Batch, info: DataInfo, limit: int = SHOWN) -> Image.Image:
        return masked_sheet(batch, self.preprocessing, limit)

    def describe(self) -> str:
        return f"{self.preprocessing}, masks of {self._masking.masked} of {self._masking.squares} squares"

    @torch.no_grad()
    def epoch_pictures(self, model: nn.Module, shown: EvalLoader) -> Pictures:
        """Returns a picture of evenly spaced samples: original, masked, reconstructed."""
        samples, count = len(shown.source), min(ON_SHEET, len(shown.source))
        batch = shown.batch([i * samples // count for i in range(count)])
        if batch is None:
            return {}
        with evaluating(model):
            predicted = self.forward(model, batch).predicted
        images = stacked(batch)
        mean, deviation = neighbourhood(images, self._side)
        masks = self._masking.fixed(batch.samples).to(images.device)
        pixels = predicted * deviation + mean
        return {"reconstruction": reconstruction_sheet(images, masks, pixels, self.preprocessing)}


class MeanError:
    """Evaluates the mean error over the samples of all ranks."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def update(self, outputs: Outputs, batch: Batch) -> None:
        errors = outputs.errors
        dtype = torch.float32 if errors.device.type == "mps" else torch.float64  # MPS has no float64
        sums = torch.stack([errors.sum().to(dtype), torch.tensor(len(errors), dtype=dtype, device=errors.device)])
        self._sums = sums if self._sums is None else self._sums + sums

    def compute(self, world: World) -> Evaluation:
        """Reduces across all ranks. Raises: DataError if no sample could be read."""
        own = torch.zeros(2, device=world.device) if self._sums is None else self._sums
        total, seen = world.gather(own).sum(0).tolist()
        if not seen:
            raise DataError("DATA.DATA_PATH", "no validation image could be read", "run scripts/prepare_data.py check")
        loss = total / seen
        return Evaluation({"loss": loss}, f"validation loss {loss:.4f}", samples=int(seen))


TASK = Reconstruction
