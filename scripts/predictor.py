"""Predictor for notebooks, from images to class names."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data.pipeline.device import Normalize
from data.sources.base import Record
from scripts.open_model import open_model
from tasks.classification.class_names import in_words
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import ConfigError
from utils.eval_cache import keep_derived


class Predictor:
    """Predicts the classes of single images, like scripts/predict.py for many.

    Args: name: a checkpoint, the folder of a run, a URL, "hub:<released model>", "hf:<repository>", an exported file;
    recipe: for weights that do not store one; device: the model's.
    Attributes: model; class_names in label order; transform: see `Predictor.transform`.
    Raises: CheckpointError, ConfigError.
    """

    def __init__(self, name: str, recipe: str = "", device: str = "cpu"):
        self.device = torch.device(device)
        opened = open_model(name, recipe, world=World(device=self.device))
        card = opened.task.card(opened.info)
        if card is None or not card.example:
            raise ConfigError(name, f"TASK {opened.task.name} predicts no class of an image", "use scripts/predict.py")
        self.model, self._task, self._info = opened.model, opened.task, opened.info
        self.class_names = in_words(opened.class_names)
        pipeline = opened.task.pipeline(opened.info)
        self._transform, self._collate = pipeline.val, pipeline.collate
        self._normalize = Normalize(opened.preprocessing, self.device)

    def transform(self, image: "str | Path | Image.Image") -> Tensor:
        """Returns the input of the model for an image or its path: float32 (1, C, H, W). Raises: DataError, OSError."""
        if isinstance(image, Image.Image):
            buffer, turn = io.BytesIO(), image.getexif()
            usual = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # supported by PNG
            (image if usual else image.convert("RGB")).save(buffer, "png", exif=turn)
            record = Record(buffer.getvalue(), None, "the image")
        else:
            record = Record(Path(image).read_bytes(), None, str(image))
        images = self._normalize(self._collate([self._transform(record)]))
        assert isinstance(images, Tensor)
        return images

    @torch.no_grad()
    def __call__(self, image: "str | Path | Image.Image", topk: int = 5) -> list[tuple[str, float]]:
        """Returns the most probable classes of an image with their probabilities."""
        batch, task = Batch(self.transform(image), None, samples=(0,)), self._task
        with keep_derived():
            (row,) = task.predictions(task.forward(self.model, batch), batch, self._info, topk)
        assert row.record is not None
        return list(zip(row.record["classes"], row.record["probabilities"], strict=True))
