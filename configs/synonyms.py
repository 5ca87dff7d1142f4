"""Option names of other programs, mainly timm's train.py, mapped to keys: for messages and docs/from_timm.md."""

from collections.abc import Iterable

# foreign name -> key or option
SYNONYMS = {
    "aa": "AUG.AUTO_AUGMENT",
    "accum-iter": "TRAIN.ACCUMULATION_STEPS",
    "accumulation": "TRAIN.ACCUMULATION_STEPS",
    "amp": "--enable-amp",
    "arch": "--cfg",
    "b": "DATA.BATCH_SIZE",
    "bf16": "AMP_DTYPE",
    "blr": "TRAIN.BASE_LR",
    "bs": "DATA.BATCH_SIZE",
    "channels": "MODEL.SWIN.IN_CHANS",
    "checkpoint": "--resume",
    "checkpoint-hist": "TRAIN.KEEP_CHECKPOINTS",
    "class-map": "TEST.CLASSES",
    "classes": "MODEL.NUM_CLASSES",
    "compile": "TRAIN.COMPILE",
    "config": "--cfg",
    "crop": "TEST.CROP_PCT",
    "data": "--data-path",
    "data-dir": "--data-path",
    "decay-epochs": "TRAIN.LR_SCHEDULER.DECAY_EPOCHS",
    "decay-milestones": "TRAIN.LR_SCHEDULER.MULTISTEPS",
    "decay-rate": "TRAIN.LR_SCHEDULER.DECAY_RATE",
    "distillation-alpha": "DISTILLATION.ALPHA",
    "distillation-tau": "DISTILLATION.TEMPERATURE",
    "distillation-type": "DISTILLATION.KIND",
    "drop": "MODEL.DROP_RATE",
    "drop-path": "MODEL.DROP_PATH_RATE",
    "dropout": "MODEL.DROP_RATE",
    "ema": "TRAIN.EMA.ENABLE",
    "experiment": "--tag",
    "finetune": "--pretrained",
    "fp16": "AMP_DTYPE",
    "global-batch": "TRAIN.GLOBAL_BATCH_SIZE",
    "grad-accum-steps": "TRAIN.ACCUMULATION_STEPS",
    "grad-checkpointing": "TRAIN.USE_CHECKPOINT",
    "image-size": "DATA.IMG_SIZE",
    "in-chans": "MODEL.SWIN.IN_CHANS",
    "initial-checkpoint": "--pretrained",
    "input-size": "DATA.IMG_SIZE",
    "j": "DATA.NUM_WORKERS",
    "kd-model-name": "DISTILLATION.TEACHER",
    "kd-temperature": "DISTILLATION.TEMPERATURE",
    "learning-rate": "TRAIN.BASE_LR",
    "load": "--pretrained",
    "log-interval": "PRINT_FREQ",
    "lr": "TRAIN.BASE_LR",
    "lr-base": "TRAIN.BASE_LR",
    "max-epochs": "TRAIN.EPOCHS",
    "mixed-precision": "AMP_ENABLE",
    "model": "--cfg",
    "model-ema": "TRAIN.EMA.ENABLE",
    "model-ema-decay": "TRAIN.EMA.DECAY",
    "model-ema-warmup": "TRAIN.EMA.WARMUP",
    "name": "--tag",
    "native-amp": "AMP_ENABLE",
    "num-epochs": "TRAIN.EPOCHS",
    "opt": "TRAIN.OPTIMIZER.NAME",
    "opt-betas": "TRAIN.OPTIMIZER.BETAS",
    "opt-eps": "TRAIN.OPTIMIZER.EPS",
    "optimizer": "TRAIN.OPTIMIZER.NAME",
    "output-dir": "--output",
    "pin-mem": "DATA.PIN_MEMORY",
    "precision": "AMP_DTYPE",
    "reprob": "AUG.REPROB",
    "resolution": "DATA.IMG_SIZE",
    "sched": "TRAIN.LR_SCHEDULER.NAME",
    "scheduler": "TRAIN.LR_SCHEDULER.NAME",
    "smoothing": "MODEL.LABEL_SMOOTHING",
    "teacher-model": "DISTILLATION.TEACHER",
    "teacher-path": "DISTILLATION.WEIGHTS",
    "test": "--eval",
    "torchcompile": "TRAIN.COMPILE",
    "train-interpolation": "DATA.INTERPOLATION",
    "val": "--eval",
    "validate": "--eval",
    "warmup": "TRAIN.WARMUP_EPOCHS",
    "wd": "TRAIN.WEIGHT_DECAY",
    "weights": "--pretrained",
    "window": "MODEL.SWIN.WINDOW_SIZE",
    "workers": "DATA.NUM_WORKERS",
}


def meant_by(name: str, known: Iterable[str] = ()) -> str | None:
    """Returns the key or option equivalent to `name`, an option of another program or a misplaced key; None if unknown.

    Args: known: keys; a name that is the last part of exactly one of them matches it.
    """
    word = name.lstrip("-").rsplit(".", 1)[-1].lower().replace("_", "-")
    if word in SYNONYMS:
        return SYNONYMS[word]
    ending = [key for key in known if key.rsplit(".", 1)[-1].lower().replace("_", "-") == word]
    return ending[0] if len(ending) == 1 else None
