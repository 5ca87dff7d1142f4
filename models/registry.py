"""Registry of model families by MODEL.TYPE, and construction of models from the configuration."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import nn
from yacs.config import CfgNode

from models.backbone import PyramidOptions, SwinBackbone
from models.ops.forms import Forms
from models.ops.measure import choose_forms, measured_precision
from models.swin import SwinTransformer
from models.swin_mlp import SwinMlp
from models.swin_moe import SwinMoe
from models.swin_v2 import SwinTransformerV2
from utils.cost import check_compiler, describe_model, input_channels
from utils.distributed.world import World
from utils.errors import ConfigError, did_you_mean
from utils.precision import MEASURED, Precision
from utils.preprocessing import Preprocessing, Size, image_size
from utils.seeding import seed_all

log = logging.getLogger(__name__)

MODELS: dict[str, type[SwinBackbone]] = {c.family: c for c in (SwinTransformer, SwinTransformerV2, SwinMlp, SwinMoe)}
TIMM = "timm"
CUDA_GRAPHS = "reduce-overhead"  # their name in torch.compile
CLASSES = {"imagenet22K": 21841}  # by dataset; 1000 otherwise


@dataclass(frozen=True, kw_only=True)
class TimmOptions:
    """Options of a timm classifier, so that other architectures train and evaluate in the same way.

    `img_size`: (height, width) in pixels, for models built for a fixed size.
    """

    name: str
    img_size: Size = (224, 224)
    num_classes: int = 1000
    in_chans: int = 3
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    @staticmethod
    def from_config(cfg: CfgNode) -> "TimmOptions":
        """Returns the options from MODEL.TIMM. Raises: ConfigError for a name unknown to timm."""
        name, train = cfg.MODEL.TIMM.NAME, image_size(cfg.DATA.IMG_SIZE)
        if not timm.is_model(name):
            raise ConfigError("MODEL.TIMM.NAME", f"timm has no model {name!r}", did_you_mean(name, timm.list_models()))
        own = timm.get_pretrained_cfg(name)
        test = image_size(cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE)
        if own is not None and own.fixed_input_size and not cfg.EVAL_MODE and test != train:
            raise ConfigError("TEST.IMG_SIZE", f"{name} takes images of a fixed size", "set it to 0 for training")
        return TimmOptions(
            name=name,
            img_size=test if cfg.EVAL_MODE else train,
            num_classes=cfg.MODEL.NUM_CLASSES,
            drop_rate=cfg.MODEL.DROP_RATE,
            drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
        )


ModelOptions = PyramidOptions | TimmOptions


def model_options(cfg: CfgNode) -> ModelOptions:
    """Returns the options set by MODEL. Raises: ConfigError for an unknown type or incompatible sizes."""
    name = cfg.MODEL.TYPE
    if name == TIMM:
        return TimmOptions.from_config(cfg)
    return _family(name).Options.from_config(cfg)


def backbone_of(model: nn.Module) -> SwinBackbone | None:
    """Returns the Swin that a model is or contains, or None."""
    own = getattr(model, "encoder", model)
    return own if isinstance(own, SwinBackbone) else None


def default_classes(cfg: CfgNode) -> int:
    """Returns the number of classes for a run without data."""
    return cfg.MODEL.NUM_CLASSES or CLASSES.get(cfg.DATA.DATASET, 1000)


def build(options: ModelOptions, num_classes: int | None = None) -> nn.Module:
    """Builds a newly initialised model; `num_classes` overrides the options. Raises: ConfigError if timm cannot."""
    if num_classes is not None:
        options = replace(options, num_classes=num_classes)
    if isinstance(options, TimmOptions):
        return _build_timm(options)
    model: Any = next(family for family in MODELS.values() if family.Options is type(options))
    return model(options)


def build_model(name: str, /, **arguments: Any) -> nn.Module:
    """Builds a newly initialised model by family: `build_model("swin", num_classes=10)`.

    Args: name: a MODEL.TYPE; arguments: fields of the family's options, or of `TimmOptions` for "timm".
    Raises: ConfigError for an unknown name or incompatible arguments.
    """
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    if name == TIMM:
        return build(TimmOptions(**{"name" if k == "model_name" else k: v for k, v in arguments.items()}))
    return build(_family(name).Options(**arguments))


def build_for_run(cfg: CfgNode, new_model: Callable[[], nn.Module], world: World) -> nn.Module:
    """Builds the model of a run on its device, initialised from SEED and configured by TRAIN; logs its cost.

    Raises: ConfigError.
    """
    train = cfg.TRAIN
    seed_all("model", cfg.SEED)
    model = new_model()
    training = not (cfg.EVAL_MODE or cfg.THROUGHPUT_MODE)
    if not (training and train.PARALLEL == "fsdp"):  # FSDP moves one shard at a time: the whole model may not fit
        model = model.to(world.device)
    prepare(model, checkpointing=train.USE_CHECKPOINT, stages=train.CHECKPOINT_STAGES, freeze=train.FREEZE)
    log.info("model: %s", describe_model(model, image_size((cfg.EVAL_MODE and cfg.TEST.IMG_SIZE) or cfg.DATA.IMG_SIZE)))
    if train.COMPILE:
        check_compiler(world.device)
        mode = compile_mode(cfg, world) if training else "default"
        model.compile(mode=mode)  # in place: parameter names stay the same
        log.info("compiled by torch.compile, mode %s", mode)
    return model


def forms_of(
    cfg: CfgNode, model: nn.Module, precision: Precision, world: World, stored: Mapping[str, str] | None = None
) -> Forms:
    """Returns the forms of a model's operators (`choose_forms`), for images of the configured size, and on a CPU the
    faster precision if AMP_DTYPE is auto; see `Precision.chosen`.

    Args: stored: the forms of the run that is resumed. A collective operation.
    """
    own: Forms = {}
    if cfg.AMP_ENABLE and cfg.AMP_DTYPE == "auto" and world.device.type == "cpu":  # the same on all ranks
        if stored is not None:
            own = {name: stored[name] for name in (MEASURED,) if name in stored}
        elif cfg.MODEL.FORMS != "default":
            own = measured_precision(precision, world)
    swin = backbone_of(model)
    if swin is None or cfg.MODEL.FORMS == "default":
        return own
    size = image_size((cfg.EVAL_MODE and cfg.TEST.IMG_SIZE) or cfg.DATA.IMG_SIZE)
    images = torch.zeros(1, input_channels(swin), *size, device=next(swin.parameters()).device)
    forms = choose_forms(swin, images, precision.chosen(own), world, stored)
    return {**{name: form for name, form in forms.items() if name != MEASURED}, **own}


def compile_mode(cfg: CfgNode, world: World) -> str:
    """Returns the torch.compile mode. Raises: ConfigError.

    Modes with CUDA graphs reuse the memory of gradients in the next forward pass, so gradients cannot be accumulated.
    """
    train, mode = cfg.TRAIN, cfg.TRAIN.COMPILE_MODE
    accumulates = train.ACCUMULATION_STEPS > 1 or cfg.DATA.BATCH_SIZE * world.size < train.GLOBAL_BATCH_SIZE
    if mode == "auto":
        one_gpu = world.device.type == "cuda" and world.size == 1
        return CUDA_GRAPHS if one_gpu and not accumulates else "default"
    if mode in (CUDA_GRAPHS, "max-autotune") and accumulates:
        raise ConfigError(
            "TRAIN.COMPILE_MODE",
            f"{mode} uses CUDA graphs, which cannot accumulate gradients over micro-batches",
            "set it to default, or use micro-batches of the whole batch: DATA.BATCH_SIZE, TRAIN.ACCUMULATION_STEPS 1",
        )
    return mode


def prepare(model: nn.Module, *, checkpointing: bool = False, stages: Sequence[int] = (), freeze: str = "none") -> None:
    """Enables activation checkpointing, and freezes "none", a number of stages, or "all" but the head.

    Args: stages: stages to checkpoint, empty for all.
    Raises: ConfigError for a model that cannot be frozen, or has no such stage.
    """
    if checkpointing and not stages:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    elif checkpointing:
        if not hasattr(model, "stages"):
            raise ConfigError("TRAIN.CHECKPOINT_STAGES", "only Swin models have stages", "set it to []")
        model.set_grad_checkpointing(True, stages)  # type: ignore[operator]
    if freeze == "none":
        return
    if not hasattr(model, "freeze"):
        raise ConfigError("TRAIN.FREEZE", "only Swin models can be frozen", "set it to none")
    model.freeze(None if freeze == "all" else int(freeze))  # type: ignore[operator]


def preprocessing_of(options: ModelOptions) -> Preprocessing:
    """Returns the preprocessing of a model's published weights: the paper's for Swin, timm's for a timm model."""
    if not isinstance(options, TimmOptions):
        return Preprocessing(interpolation="bicubic")
    own = timm.get_pretrained_cfg(options.name)
    if own is None:
        return Preprocessing()
    return Preprocessing(tuple(own.mean), tuple(own.std), own.crop_pct, own.interpolation)


def _family(name: str) -> type[SwinBackbone]:
    if name not in MODELS:
        raise ConfigError("MODEL.TYPE", f"unknown model family {name!r}", did_you_mean(name, [*MODELS, TIMM]))
    return MODELS[name]


def _build_timm(options: TimmOptions) -> nn.Module:
    arguments: dict[str, Any] = {"num_classes": options.num_classes, "drop_rate": options.drop_rate}
    if options.in_chans != 3:
        arguments["in_chans"] = options.in_chans
    own = timm.get_pretrained_cfg(options.name)
    if own is not None and own.fixed_input_size:  # transformers with position embeddings
        arguments["img_size"] = options.img_size
    try:
        return timm.create_model(options.name, drop_path_rate=options.drop_path_rate or None, **arguments)
    except TypeError as e:
        if "drop_path_rate" not in str(e):
            raise
        raise ConfigError("MODEL.DROP_PATH_RATE", f"{options.name} has no stochastic depth", "set it to 0") from e
