"""The model families by the name that a config gives them in MODEL.TYPE."""

import difflib
from typing import Any

import timm
from torch import nn

from models.backbone import SwinBackbone
from models.errors import ModelError
from models.swin import SwinTransformer
from models.swin_mlp import SwinMlp
from models.swin_v2 import SwinTransformerV2

MODELS: dict[str, type[SwinBackbone]] = {c.family: c for c in (SwinTransformer, SwinTransformerV2, SwinMlp)}


def build_model(name: str, **arguments: Any) -> nn.Module:
    """A freshly initialised model of family `name`; `arguments` are its constructor's.

    "timm" builds any classifier of timm, `model_name`, so that peers can be trained and evaluated alike.
    Raises: ModelError for an unknown name, or arguments that do not fit together.
    """
    if name == "timm":
        return _build_timm(**arguments)
    if name not in MODELS:
        raise ModelError(f"no model family is called {name!r}: MODEL.TYPE: {_nearest(name, [*MODELS, 'timm'])}")
    return MODELS[name](**arguments)


def prepare(model: nn.Module, *, checkpointing: bool, freeze: str) -> None:
    """Switch activation checkpointing on, and freeze: "none", a number of stages, or "all" but the head.

    Raises: ModelError for a model that cannot be frozen so.
    """
    if checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    if freeze == "none":
        return
    if not isinstance(model, SwinBackbone):
        raise ModelError("only Swin models can be frozen: TRAIN.FREEZE: set it to none")
    model.freeze(None if freeze == "all" else int(freeze))


def _build_timm(*, model_name: str, img_size: int, test_size: int = 0, **arguments: Any) -> nn.Module:
    if not timm.is_model(model_name):
        raise ModelError(
            f"timm has no model {model_name!r}: MODEL.TIMM.NAME: {_nearest(model_name, timm.list_models())}"
        )
    config = timm.get_pretrained_cfg(model_name)
    if config is not None and config.fixed_input_size:  # transformers with position tables
        if test_size not in (0, img_size):
            raise ModelError(f"{model_name} takes images of one size only: TEST.IMG_SIZE: set it to 0 for training")
        arguments["img_size"] = img_size
    try:
        return timm.create_model(model_name, **{**arguments, "drop_path_rate": arguments.get("drop_path_rate") or None})
    except TypeError as e:
        if "drop_path_rate" not in str(e):
            raise
        raise ModelError(f"{model_name} has no stochastic depth: MODEL.DROP_PATH_RATE: set it to 0") from e


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names[:10])}"
