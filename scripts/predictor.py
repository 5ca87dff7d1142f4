"""Predictor for notebooks, from images to class names."""

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.pipeline.device import Normalize
from data.sources.base import Record
from scripts.open_model import open_model
from tasks.classification.class_names import in_words
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
        if not opened.class_names:
            raise ConfigError(name, f"TASK {opened.task.name} predicts no classes", "use scripts/predict.py")
        self.model: Any = opened.model
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
        with keep_derived():
            probabilities = self.model(self.transform(image))[0].float().softmax(0)
        best = probabilities.topk(min(topk, len(self.class_names)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.class_names[label], probability) for label, probability in pairs]
