"""What each part of the program is handed from the configuration: values by the names of its parameters."""

from typing import Any

from yacs.config import CfgNode

from configs.loading import flat_config, parse_config
from configs.schema import KEYS

# may change between two starts of one run: none of them moves a result (the global batch is compared by itself)
FREE_KEYS = {
    "BASE",
    "DATA.BATCH_SIZE",
    "DATA.DATA_PATH",
    "DATA.NUM_WORKERS",
    "DATA.TIMEOUT",
    "DATA.ON_BAD_IMAGE",
    "DATA.PIN_MEMORY",
    "DATA.ZIP_MODE",
    "DATA.CACHE_MODE",
    "DATA.ACCEPT_CHANGES",
    "MODEL.RESUME",
    "MODEL.SHA256",
    "TEST.REAL",
    "TEST.CLASSES",
    "TEST.PER_CLASS",
    "TEST.RESULTS",
    "MODEL.NUM_CLASSES",
    "TRAIN.ACCUMULATION_STEPS",
    "TRAIN.GLOBAL_BATCH_SIZE",
    "TRAIN.USE_CHECKPOINT",
    "TRAIN.AUTO_RESUME",
    "TRAIN.SAVE_EVERY_UPDATES",
    "TRAIN.SAVE_EVERY_MINUTES",
    "TRAIN.KEEP_CHECKPOINTS",
    "TRAIN.MAX_SKIPPED_UPDATES",
    "OUTPUT",
    "SAVE_FREQ",
    "PRINT_FREQ",
    "EVAL_MODE",
    "THROUGHPUT_MODE",
}
_FAMILY_SECTIONS = {"swin": "SWIN", "swinv2": "SWINV2", "swin_mlp": "SWIN_MLP", "swin_moe": "SWIN_MOE"}


def config_differences(cfg: CfgNode, text: str) -> list[str]:
    """Lines 'KEY was A, now B' for the keys that make `text`, an earlier run's configuration, another run."""
    then, now = parse_config(text, "config.yaml of the output folder"), flat_config(cfg)
    keys = [key for key in now if key not in FREE_KEYS]
    return [
        f"{key} was {then.get(key, KEYS[key].default)}, now {now[key]}"
        for key in keys
        if then.get(key, KEYS[key].default) != now[key]
    ]


def model_arguments(cfg: CfgNode, classes: int) -> dict[str, Any]:
    """Arguments of models.registry.build_model for MODEL.TYPE."""
    if cfg.MODEL.TYPE == "timm":
        section: dict[str, Any] = {"model_name": cfg.MODEL.TIMM.NAME, "test_size": cfg.TEST.IMG_SIZE}
    else:
        section = dict(cfg.MODEL[_FAMILY_SECTIONS[cfg.MODEL.TYPE]] if cfg.MODEL.TYPE in _FAMILY_SECTIONS else {})
    return {
        **{key.lower(): value for key, value in section.items()},
        "img_size": seen_size(cfg) if cfg.MODEL.TYPE == "timm" else cfg.DATA.IMG_SIZE,
        "num_classes": classes,
        "drop_rate": cfg.MODEL.DROP_RATE,
        "drop_path_rate": cfg.MODEL.DROP_PATH_RATE,
    }


def seen_size(cfg: CfgNode) -> int:
    """Side of the images that this run shows the model, pixels."""
    return (cfg.EVAL_MODE and cfg.TEST.IMG_SIZE) or cfg.DATA.IMG_SIZE


def evaluated_files(cfg: CfgNode) -> list[str]:
    """Names of the files to evaluate."""
    return [name.strip() for name in (cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED).split(",") if name.strip()]


def input_channels(cfg: CfgNode) -> int:
    """Channels of the images that the model takes."""
    return cfg.MODEL[_FAMILY_SECTIONS[cfg.MODEL.TYPE]].IN_CHANS if cfg.MODEL.TYPE in _FAMILY_SECTIONS else 3


def amp_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of utils.precision.choose_precision but the device."""
    return {"enabled": cfg.AMP_ENABLE, "dtype": cfg.AMP_DTYPE}


def source_arguments(cfg: CfgNode, training: bool = True) -> dict[str, Any]:
    """Arguments of data.sources.open_sources that the configuration decides."""
    return {
        "dataset": cfg.DATA.DATASET,
        "path": cfg.DATA.DATA_PATH,
        "zipped": cfg.DATA.ZIP_MODE,
        "cache": cfg.DATA.CACHE_MODE != "no",
        "training": training,
        "classes": cfg.MODEL.NUM_CLASSES,
    }


def start_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of utils.session.Start that say where to look."""
    return {
        "auto_resume": cfg.TRAIN.AUTO_RESUME,
        "resume": cfg.MODEL.RESUME,
        "pretrained": cfg.MODEL.PRETRAINED,
        "first_epoch": cfg.TRAIN.START_EPOCH,
        "accept_changes": cfg.DATA.ACCEPT_CHANGES,
    }


def train_loader_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of data.loaders.build_train_loader that the configuration decides."""
    aug = cfg.AUG
    return {
        "channels": input_channels(cfg),
        "settings": _loader_settings(cfg),
        "transform": {
            "size": cfg.DATA.IMG_SIZE,
            "decoder": cfg.DATA.DECODER,
            "upright": cfg.DATA.EXIF == "apply",
            "interpolation": cfg.DATA.INTERPOLATION,
            "auto_augment": aug.AUTO_AUGMENT,
            "color_jitter": aug.COLOR_JITTER,
            "crop": {"scale": tuple(aug.SCALE), "ratio": tuple(aug.RATIO), "hflip": aug.HFLIP},
            "erase": {"re_prob": aug.REPROB, "re_mode": aug.REMODE, "re_count": aug.RECOUNT},
        },
        "mixing": {
            "mixup": aug.MIXUP,
            "cutmix": aug.CUTMIX,
            "minmax": aug.CUTMIX_MINMAX,
            "label_smoothing": cfg.MODEL.LABEL_SMOOTHING,
            "when": {"prob": aug.MIXUP_PROB, "switch_prob": aug.MIXUP_SWITCH_PROB, "mode": aug.MIXUP_MODE},
        },
    }


def eval_loader_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of data.loaders.build_eval_loader that the configuration decides."""
    return {
        "channels": input_channels(cfg),
        "settings": _loader_settings(cfg),
        "transform": {
            "upright": cfg.DATA.EXIF == "apply",
            "size": cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE,
            "interpolation": cfg.DATA.INTERPOLATION,
            "crop": cfg.TEST.CROP,
        },
        "batch_size": cfg.DATA.BATCH_SIZE,
    }


def _loader_settings(cfg: CfgNode) -> dict[str, Any]:
    return {
        "workers": cfg.DATA.NUM_WORKERS,
        "pin_memory": cfg.DATA.PIN_MEMORY,
        "on_bad": cfg.DATA.ON_BAD_IMAGE,
        "timeout": cfg.DATA.TIMEOUT,
    }


def preparation_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of models.registry.prepare."""
    return {"checkpointing": cfg.TRAIN.USE_CHECKPOINT, "freeze": cfg.TRAIN.FREEZE}


def state_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of utils.train_state.new_state that the configuration decides."""
    optimizer, ema = cfg.TRAIN.OPTIMIZER, cfg.TRAIN.EMA
    return {
        "weight_decay": cfg.TRAIN.WEIGHT_DECAY,
        "layer_decay": cfg.TRAIN.LAYER_DECAY,
        "optimizer": {
            "name": optimizer.NAME,
            "eps": optimizer.EPS,
            "betas": optimizer.BETAS,
            "momentum": optimizer.MOMENTUM,
        },
        "ema": {"decay": ema.DECAY, "use_warmup": ema.WARMUP} if ema.ENABLE else None,
    }


def session_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of utils.session.Session that say when to log and to save."""
    return {
        "print_freq": cfg.PRINT_FREQ,
        "save_freq": cfg.SAVE_FREQ,
        "save_updates": cfg.TRAIN.SAVE_EVERY_UPDATES,
        "save_minutes": cfg.TRAIN.SAVE_EVERY_MINUTES,
        "keep": cfg.TRAIN.KEEP_CHECKPOINTS,
    }
