"""Pictures of what a Swin's predictions rest on, for scripts/predict.py --explain."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.loaders import PipelineOptions, build_eval_loader
from data.sources.files import FileSource
from models.backbone import SwinBackbone
from models.explain import attention_rollout, class_activation
from scripts.open_model import ModelFile
from utils.distributed.world import World
from utils.errors import ConfigError
from utils.files import write_errors, writing
from utils.pictures import new_figure


def explain(
    opened: ModelFile, paths: Sequence[Path], rows: Sequence[Any], folder: Path, world: World
) -> Iterator[Path]:
    """Writes a PNG per readable image: the model's input, the evidence for the first class, the attention.

    Yields: the files. Raises: ConfigError for a model that is not a Swin.
    """
    model = opened.model
    if not isinstance(model, SwinBackbone):
        what = "an exported file" if opened.exported else type(model).__name__
        raise ConfigError(f"{what} cannot be explained: --explain: use a checkpoint of a Swin")
    with write_errors(folder, "--explain"):
        folder.mkdir(parents=True, exist_ok=True)
    pipeline = PipelineOptions.from_config(opened.cfg, opened.channels, opened.preprocessing)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (opened.preprocessing.mean, opened.preprocessing.std))
    pairs = iter(enumerate(zip(paths, rows, strict=True)))
    for images, targets in build_eval_loader(FileSource(paths), world, pipeline):
        batch = [next(pairs) for _ in range(len(images))]
        chosen = [row.labels[0] if row.labels else 0 for _, (_, row) in batch]
        evidence = class_activation(model, images, chosen)
        attention = attention_rollout(model, images) if model.family != "swin_mlp" else None
        for i, (number, (path, row)) in enumerate(batch):
            if targets[i] < 0:
                continue
            panels = [("input", None), ("evidence (Grad-CAM)", evidence[i])]
            panels += [("attention (roll-out)", attention[i])] if attention is not None else []
            target = folder / f"{number:0{len(str(len(paths) - 1))}}_{path.stem}.png"
            title = f"{row.classes[0]} {row.probabilities[0]:.1%}"
            _draw(target, (images[i].cpu() * std + mean).clamp(0, 1), panels, title)
            yield target


def _draw(target: Path, pixels: Tensor, panels: list[tuple[str, Tensor | None]], title: str) -> None:
    height, width = pixels.shape[1:]
    figure = new_figure(3.2 * len(panels), 3.2 * height / width + 0.6)
    figure.suptitle(title, fontsize=11)
    image = (pixels[:3].permute(1, 2, 0) if len(pixels) >= 3 else pixels[0]).numpy()
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image, cmap="gray")
        if values is not None:
            large = F.interpolate(values.cpu()[None, None], (height, width), mode="bilinear")[0, 0]
            low, high = large.min(), large.max()
            axes.imshow(
                ((large - low) / (high - low).clamp(min=1e-12)).numpy(), cmap="inferno", alpha=0.55, vmin=0, vmax=1
            )
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    with writing(target, "--explain") as temporary:
        figure.savefig(temporary, dpi=110, format="png")
