"""torch.hub entry points: every released model by name, and a predictor for any model file.

    model = torch.hub.load(REPOSITORY, "swin_tiny_patch4_window7_224", pretrained=True)

    predict = torch.hub.load(REPOSITORY, "predictor", "hub:swin_tiny_patch4_window7_224")

REPOSITORY is this repository on GitHub ("owner/name"), or the path of a checkout with `source="local"`. torch.hub puts
the repository on the import path while it builds the model, so this works from any working directory, unless other
packages called configs, models, data or utils are already imported.
"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from configs.loading import load_config
from models.registry import MODELS, build, model_options
from models.weights.load import find_weights, load_contents
from utils.checkpoints.downloads import read_weights
from utils.checkpoints.released import released_models
from utils.errors import ConfigError, did_you_mean

dependencies = ["torch", "torchvision", "timm", "yacs", "yaml", "safetensors"]


def _entry_point(recipe: str) -> Callable[..., nn.Module]:
    def entry_point(pretrained: bool | str = False, **options: Any) -> nn.Module:
        config = next(Path(__file__).parent.glob(f"configs/*/{recipe}.yaml"))
        return _build(config, recipe, pretrained, options)

    entry_point.__name__ = recipe
    entry_point.__doc__ = f"""Builds {recipe} in evaluation mode.

    Args: pretrained: True for the released weights, or a file, a URL, "hf:<repository>"; options: fields of the
    family's options, such as num_classes (zero-initialises the head), img_size, drop_path_rate.
    Raises: ConfigError, CheckpointError.
    """
    return entry_point


def _build(config: Path, recipe: str, pretrained: bool | str, options: dict[str, Any]) -> nn.Module:
    row = next(row for row in released_models() if row["config"] == recipe)
    cfg = load_config(config)
    own = model_options(cfg)
    known = [field.name for field in fields(MODELS[cfg.MODEL.TYPE].Options)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(unknown[0], f"unknown option of {recipe}", did_you_mean(unknown[0], known))
    arguments = {name: getattr(own, name) for name in known} | {"num_classes": row["classes"]}
    if not pretrained:
        return build(type(own)(**arguments | options)).eval()
    name = f"hub:{recipe}" if pretrained is True else str(pretrained)
    contents = read_weights(name)
    classes = find_weights(contents, name).classes
    model = build(type(own)(**arguments | {"num_classes": classes} | options))
    fits = options.get("num_classes", classes) == classes
    load_contents(model, contents, name, head_for=None if fits else ())
    return model.eval()


def predictor(name: str, recipe: str = "", device: str = "cpu") -> Any:
    """Returns a function that maps an image to class names with probabilities; see scripts/predictor.py."""
    from scripts.predictor import Predictor  # has more dependencies than the models

    return Predictor(name, recipe, device)


def __dir__() -> list[str]:
    return ["predictor", *_names()]


def _names() -> list[str]:
    return [row["config"] for row in released_models()]


def __getattr__(name: str) -> Any:
    if name not in _names():
        raise AttributeError(name)
    return _entry_point(name)
