"""Pictures that explain a Swin's predictions, for scripts/predict.py --explain."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from data.sources.files import FileSource
from models.explain import attention_rollout, class_activation
from models.registry import backbone_of
from scripts.open_model import ModelFile
from tasks.classification.class_names import in_words
from utils.batches import stacked
from utils.errors import ConfigError
from utils.files import short_stem, write_errors, writing
from utils.pictures import new_figure, restore
from utils.training.evaluate import predict


def explain(opened: ModelFile, paths: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Writes a PNG per readable image: the model's input, the evidence for the first class, the attention.

    Yields: the files. Raises: ConfigError for a model that is not a Swin classifier; ResourceError.
    """
    model, task, names = opened.model, opened.task, in_words(opened.class_names)
    if backbone_of(model) is not model or not names:
        what = "an exported file" if opened.exported else type(model).__name__
        raise ConfigError("--explain", f"cannot explain {what}", "use a checkpoint of a Swin classifier")
    swin: Any = model
    with write_errors(folder, "--explain"):
        folder.mkdir(parents=True, exist_ok=True)
    loader = task.loader(FileSource(paths), opened.info, on_bad="skip_any")
    for outputs, batch in predict(model, loader, task.forward, task.world):
        images = stacked(batch)
        probabilities, labels = outputs.logits.float().softmax(1).max(1)
        evidence = class_activation(swin, images, labels.tolist())
        attention = attention_rollout(swin, images) if swin.family != "swin_mlp" else None
        pixels = restore(images, opened.preprocessing)
        for i, number in enumerate(batch.samples):
            panels = [("input", None), ("evidence (Grad-CAM)", evidence[i])]
            panels += [("attention (roll-out)", attention[i])] if attention is not None else []
            target = folder / f"{number:0{len(str(len(paths) - 1))}}_{short_stem(paths[number])}.png"
            _draw(target, pixels[i].cpu(), panels, f"{names[int(labels[i])]} {float(probabilities[i]):.1%}")
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
