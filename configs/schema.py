"""All configuration keys: defaults, meanings, units, allowed values.

Names, defaults and meanings match the original Swin repository, so its YAML files load unchanged; additional keys are
marked "new". `configs/loading.py` checks files and options against this table.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from configs.checks import (
    above,
    at_least,
    below_one,
    frozen,
    grouping,
    hexadecimal,
    inside,
    numbers,
    one_of,
    pair,
    policy,
    positive_list,
    positives,
    sides,
    two_below_one,
    unless_auto,
    within,
)
from configs.values import AUTO, DEVICE, FLOAT, INT, NUMBER, SIZE, Key, TaskKeys, auto_or, list_of, optional
from utils.preprocessing import CROPS

DEFAULT_TASK = "classification"  # for TASK auto, and for configurations that predate TASK
TASKS: dict[str, TaskKeys] = {}
PER_CHANNEL = auto_or(list_of(FLOAT, "[0.5, 0.5, 0.5]"))


def pyramid(**more: Key) -> dict[str, Any]:
    """Returns the keys shared by all Swin families (defaults: Swin-T)."""
    keys = {
        "PATCH_SIZE": Key(4, "side of a patch, pixels", at_least(1)),
        "IN_CHANS": Key(3, "channels of an image", at_least(1)),
        "EMBED_DIM": Key(96, "channels of the first stage", at_least(1)),
        "DEPTHS": Key([2, 2, 6, 2], "blocks per stage", positive_list),
        "NUM_HEADS": Key([3, 6, 12, 24], "attention heads per stage", positive_list),
        "WINDOW_SIZE": Key(7, "side of a window, tokens", at_least(1)),
        "MLP_RATIO": Key(4.0, "hidden width of an MLP, relative to its input", above(0)),
        "APE": Key(False, "absolute position embedding (paper, table 4: no gain)"),
        "PATCH_NORM": Key(True, "norm after the patch embedding"),
    }
    return {**keys, **more}


QKV_BIAS = Key(True, "bias on query, key and value")
QK_SCALE = Key(None, "factor on the attention scores; null: 1 / sqrt(channels per head)", above(0), optional(FLOAT))
PRETRAINED_WINDOWS = Key([0, 0, 0, 0], "pre-training window size per stage; 0: as stored in the file")

SCHEMA: dict[str, Any] = {
    "TASK": Key(AUTO, "new: task to train; auto infers it from the keys set", lambda v: one_of(AUTO, *TASKS)(v)),
    "BASE": Key([""], "YAML files to inherit from, relative to this one", free=True),
    "DATA": {
        "BATCH_SIZE": Key(128, "images per rank and micro-batch", at_least(1), free=True),
        "DATA_PATH": Key("", "folder that contains train and val", free=True, per_machine=True),
        "DATASET": Key("imagenet", "imagenet: folders; imagenet22K, list; tar; timm:hfds/NAME; digits; synthetic"),
        "IMAGE_COLUMN": Key(
            AUTO, "new: column of a .csv, .tsv or timm:hfds/NAME with the images: a name or a position"
        ),
        "LABEL_COLUMN": Key(AUTO, "new: column with the labels"),
        "SPLIT_COLUMN": Key(AUTO, "new: column of a table with train, val or test; empty: none"),
        "WEIGHT_COLUMN": Key(AUTO, "new: column of a table with the weights of the samples in the loss; empty: none"),
        "LABEL_SEPARATOR": Key(AUTO, "new: separator of multiple labels; auto: the first of ; | , that occurs"),
        "SPLIT": Key(0.2, "new: fraction to hold out for validation if the dataset has no splits", inside(0, 1)),
        "SPLIT_SEED": Key(0, "new: seed of the train/validation split", at_least(0)),
        "NEAR_DUPLICATES": Key(
            "together",
            "new: near-duplicates when a dataset is split: together in one split; ignore: not searched for",
            one_of("together", "ignore"),
        ),
        "GROUP_BY": Key(
            "",
            "new: images that stay in one split: prefix:_ (file names up to _), regex:PATTERN, column:NAME of a table",
            grouping,
        ),
        "IMG_SIZE": Key(224, "size of the model's input in pixels: a side, or [height, width]", sides(1), SIZE),
        "INTERPOLATION": Key("bicubic", "resize filter", one_of("bicubic", "bilinear", "lanczos", "hamming", "random")),
        "MEAN": Key(AUTO, "new: mean per channel; auto: the model's, for Swin ImageNet's", numbers, PER_CHANNEL),
        "STD": Key(AUTO, "new: std per channel; auto: the model's, for Swin ImageNet's", positives, PER_CHANNEL),
        "ZIP_MODE": Key(False, "read train.zip and val.zip instead of folders", free=True, per_machine=True),
        "CACHE_MODE": Key(
            "part",
            "part or full: read archives into the page cache first; no: off",
            one_of("part", "full", "no"),
            free=True,
            per_machine=True,
        ),
        "ACCEPT_CHANGES": Key(False, "new: resume even if the training samples have changed", free=True),
        "PIN_MEMORY": Key(True, "page-locked batches, for faster copies to a GPU", free=True, per_machine=True),
        "NUM_WORKERS": Key(
            AUTO,
            "loader workers per rank; 0: none; auto: cores per rank, at most 8 (as in the original)",
            unless_auto(at_least(0)),
            auto_or(INT),
            free=True,
            per_machine=True,
        ),
        "EXIF": Key(
            AUTO,
            "new: EXIF orientation: apply; ignore, as published; auto: ignore on ImageNet's classes only",
            one_of(AUTO, "ignore", "apply"),
        ),
        "ON_BAD_IMAGE": Key("error", "new: unreadable images: error or skip", one_of("error", "skip"), free=True),
        "DECODER": Key("auto", "new: training decoder; pillow: slower, timm's pixels", one_of("auto", "pillow")),
        "TIMEOUT": Key(300.0, "new: seconds without a batch that end the run; 0: never", at_least(0), free=True),
    },
    "MODEL": {
        "TYPE": Key("swin", "model family"),
        "NAME": Key("swin_tiny_patch4_window7_224", "name of the output folder"),
        "PRETRAINED": Key("", "weights to start from"),
        "RESUME": Key(
            "", "checkpoint or run to resume, or to evaluate (then also several, comma-separated)", free=True
        ),
        "SHA256": Key("", "new: expected digest of the file of PRETRAINED or RESUME", hexadecimal, free=True),
        "NUM_CLASSES": Key(0, "0: as in the data, or the evaluated weights (original: 1000)", at_least(0), free=True),
        "DROP_RATE": Key(0.0, "dropout", below_one),
        "DROP_PATH_RATE": Key(0.1, "stochastic depth rate of the last block", below_one),
        "ATTENTION": Key(
            AUTO,
            "new: implementation of window attention; auto: the fastest; explicit; fused (PyTorch's); kernel (Triton)",
            one_of(AUTO, "explicit", "fused", "kernel"),
            free=True,
        ),
        "FORMS": Key(
            "measured",
            "new: implementations of operators on CPUs; measured: the fastest on this machine; default: fixed",
            one_of("measured", "default"),
            free=True,
        ),
        "SWIN": pyramid(QKV_BIAS=QKV_BIAS, QK_SCALE=QK_SCALE),
        "SWINV2": pyramid(
            QKV_BIAS=QKV_BIAS,
            PRETRAINED_WINDOW_SIZES=PRETRAINED_WINDOWS,
            EXTRA_NORM_EVERY=Key(0, "new: blocks between extra norms on the main branch; 0: none", at_least(0)),
        ),
        "SWIN_MLP": pyramid(),
        "SWIN_MOE": pyramid(
            QKV_BIAS=QKV_BIAS,
            QK_SCALE=QK_SCALE,
            MLP_FC2_BIAS=Key(True, "bias on the second layer of an MLP"),
            INIT_STD=Key(0.02, "standard deviation of initial weights", above(0)),
            PRETRAINED_WINDOW_SIZES=PRETRAINED_WINDOWS,
            MOE_BLOCKS=Key([[-1], [-1], [-1], [-1]], "blocks with experts, per stage; -1: none"),
            NUM_EXPERTS=Key(0, "new: experts per layer; 0: from NUM_LOCAL_EXPERTS and the world size", at_least(0)),
            NUM_LOCAL_EXPERTS=Key(
                1, "experts per rank; below 0: ranks per expert", lambda v: None if v else "must not be 0"
            ),
            TOP_VALUE=Key(1, "experts per token", at_least(1)),
            CAPACITY_FACTOR=Key(1.25, "capacity of an expert, relative to an even load; 0: unlimited", at_least(0)),
            COSINE_ROUTER=Key(False, "route by cosine similarity"),
            NORMALIZE_GATE=Key(False, "normalise the gates to sum to 1"),
            USE_BPR=Key(True, "batch prioritised routing: over capacity, the highest scores come first"),
            IS_GSHARD_LOSS=Key(False, "GShard's balance loss instead of the load-importance loss"),
            GATE_NOISE=Key(1.0, "std of the noise on the training logits, times the number of experts", at_least(0)),
            COSINE_ROUTER_DIM=Key(256, "channels of the cosine router", at_least(1)),
            COSINE_ROUTER_INIT_T=Key(0.5, "initial temperature of the cosine router", above(0)),
            MOE_DROP=Key(0.0, "dropout of the experts", below_one),
            AUX_LOSS_WEIGHT=Key(0.01, "weight of the balance loss", at_least(0)),
        ),
        "TIMM": {"NAME": Key("", "new: with TYPE timm: name of the model in timm")},
        "TABLE_INTERPOLATION": Key(
            "bicubic",
            "new: resampling of position tables to a different window size; geometric in the simmim_finetune recipes",
            one_of("bicubic", "geometric"),
        ),
    },
    "TRAIN": {
        "START_EPOCH": Key(0, "first epoch of a run without a checkpoint", at_least(0)),
        "EPOCHS": Key(
            300,
            "epochs, including warm-up; auto: 200 up to 250 training samples, 100 for 1,000, 10 from 100,000 on",
            unless_auto(at_least(1)),
            auto_or(INT),
        ),
        "UPDATES": Key(0, "new: length of the run in updates, instead of EPOCHS; 0: off", at_least(0)),
        "WARMUP_EPOCHS": Key(20, "epochs of linear warm-up, or a fraction of one", at_least(0), NUMBER),
        "WARMUP_UPDATES": Key(0, "new: updates of linear warm-up, instead of WARMUP_EPOCHS; 0: off", at_least(0)),
        "EVAL_EVERY_UPDATES": Key(
            0, "new: evaluate and save every N updates and at the end, not after every epoch; 0: off", at_least(0)
        ),
        "WEIGHT_DECAY": Key(0.05, "weight decay of matrices; norms, biases and position tables have none", at_least(0)),
        "BASE_LR": Key(5e-4, "peak learning rate per 512 images of global batch", at_least(0)),
        "LR": Key(
            0.0,
            "new: peak learning rate for any global batch; WARMUP_LR and MIN_LR keep their ratio to BASE_LR; 0: off",
            at_least(0),
        ),
        "WARMUP_LR": Key(5e-7, "learning rate at the start of the warm-up, per 512 images", at_least(0)),
        "MIN_LR": Key(5e-6, "learning rate at the end of the cosine, per 512 images", at_least(0)),
        "CLIP_GRAD": Key(5.0, "maximum gradient norm; 0: no clipping", at_least(0)),
        "AUTO_RESUME": Key(True, "resume from the newest checkpoint in the output folder", free=True),
        "ACCUMULATION_STEPS": Key(1, "micro-batches per update", at_least(1), free=True),
        "USE_CHECKPOINT": Key(False, "activation checkpointing: less memory, a third more time", free=True),
        "CHECKPOINT_STAGES": Key([], "stages for USE_CHECKPOINT, from 0; empty: all", kind=list_of(INT), free=True),
        "COMPILE": Key(False, "torch.compile: slow to start; needs a C++ compiler (CPU) or Triton (CUDA)"),
        "COMPILE_MODE": Key(
            AUTO,
            "new: torch.compile mode; auto: reduce-overhead (CUDA graphs) on 1 GPU without accumulation, else default",
            one_of(AUTO, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
        ),
        "PARALLEL": Key(
            "ddp",
            "new: ddp: every rank holds the model; fsdp: a shard of it, for models larger than a GPU",
            one_of("ddp", "fsdp"),
            free=True,
        ),
        "FSDP_DTYPE": Key(
            "float32",
            "new: dtype of fsdp's all-gathers; bfloat16: half the traffic and memory, less exact",
            one_of("float32", "bfloat16"),
        ),
        "BACKBONE_LR": Key(1.0, "new: learning-rate factor of everything but the head", above(0)),
        "PATIENCE": Key(0, "new: evaluations without improvement that end the run; 0: off", at_least(0)),
        "LAYER_DECAY": Key(1.0, "learning-rate factor per layer below the head", within(0, 1)),
        "LAYER_DECAY_RULE": Key(
            "timm",
            "new: timm: LAYER_DECAY scales the whole schedule; simmim: its peak, as in simmim_finetune recipes",
            one_of("timm", "simmim"),
        ),
        "LR_SCHEDULER": {
            "NAME": Key(
                "cosine", "decay after the warm-up", one_of("cosine", "linear", "poly", "step", "multistep", "plateau")
            ),
            "DECAY_EPOCHS": Key(30, "step: epochs between decays", at_least(1)),
            "DECAY_RATE": Key(0.1, "step, plateau: decay factor", above(0)),
            "PATIENCE": Key(10, "new: plateau: evaluations without improvement before a decay", at_least(1)),
            "WARMUP_PREFIX": Key(True, "cosine, poly: start the decay after the warm-up, not at the same time"),
            "POWER": Key(1.0, "new: poly: exponent", above(0)),
            "GAMMA": Key(0.1, "multistep: decay factor", above(0)),
            "MULTISTEPS": Key([], "multistep: epochs of the decays", kind=list_of(INT)),
        },
        "OPTIMIZER": {
            "NAME": Key("adamw", "optimizer", one_of("adamw", "sgd", "fused_adam", "fused_lamb")),
            "EPS": Key(1e-8, "adamw: epsilon", above(0)),
            "BETAS": Key([0.9, 0.999], "adamw: decay rates of the moments", two_below_one),
            "MOMENTUM": Key(0.9, "sgd: momentum", below_one),
        },
        "MOE": {"SAVE_MASTER": Key(False, "no longer used", deprecated=True)},
        # new here
        "GLOBAL_BATCH_SIZE": Key(0, "images per update, sets the accumulation; 0: off", at_least(0), free=True),
        "SAVE_EVERY_UPDATES": Key(0, "also save within an epoch, every N updates; 0: off", at_least(0), free=True),
        "SAVE_EVERY_MINUTES": Key(15.0, "also save within an epoch, every N minutes; 0: off", at_least(0), free=True),
        "KEEP_CHECKPOINTS": Key(3, "newest checkpoints to keep, besides the best; 0: all", at_least(0), free=True),
        "MAX_SKIPPED_UPDATES": Key(50, "consecutive non-finite gradients that end the run", at_least(1), free=True),
        "FREEZE": Key("none", "freeze none, N (patch embedding and first N stages) or all (all but the head)", frozen),
        "EMA": {
            "ENABLE": Key(False, "train and evaluate an exponential moving average of the weights"),
            "DECAY": Key(0.9999, "weight of the previous average in each update", below_one),
            "WARMUP": Key(False, "ramp up DECAY over the first updates"),
        },
    },
    "AUG": {
        "COLOR_JITTER": Key(0.4, "strength of colour jitter; only without AUTO_AUGMENT", at_least(0)),
        "AUTO_AUGMENT": Key("rand-m9-mstd0.5-inc1", "timm policy string; none: off", policy),
        "REPROB": Key(0.25, "probability of random erasing", within(0, 1)),
        "REMODE": Key(
            "pixel",
            "filling of erased rectangles: pixel: normal noise; rand: one random colour; const: the mean",
            one_of("pixel", "rand", "const"),
        ),
        "RECOUNT": Key(1, "maximum number of erased rectangles", within(1, 1000)),
        # new here: for data that must not be mirrored or cropped tightly
        "SCALE": Key([0.08, 1.0], "area of the random crop, relative to the image", pair(1)),
        "RATIO": Key([0.75, 4 / 3], "aspect ratio of the random crop", pair(100)),
        "HFLIP": Key(0.5, "probability of mirroring", within(0, 1)),
    },
    "TEST": {
        "CROP": Key(True, "resize the short side and crop the centre; false: squash the image"),
        # new here
        "IMG_SIZE": Key(0, "input size in evaluation; 0: DATA.IMG_SIZE, in detection TEST.SHORT_SIDE", sides(0), SIZE),
        "CROP_PCT": Key(
            AUTO,
            "centre crop / resized side; auto: the model's, 0.875",
            unless_auto(within(*CROPS)),
            auto_or(FLOAT),
        ),
        "VALIDATE": Key(True, "evaluate after every epoch; false: train without validation data"),
        "BEST": Key(AUTO, "new: metric that selects the best checkpoint, such as macro_f1; auto: the task's"),
        "PER_CLASS": Key("", "CSV file to write: metrics per class", free=True),
        "RESULTS": Key("", "CSV file to write: one row per evaluated file", free=True),
        "SEQUENTIAL": Key(False, "no longer used", deprecated=True),
        "SHUFFLE": Key(False, "no longer used", deprecated=True),
    },
    "DEVICE": Key(
        AUTO, "new: auto: a GPU if there is one; cuda; cuda:N or N for one of several; mps; cpu", kind=DEVICE, free=True
    ),
    "LOG": {"WANDB": Key("", "new: Weights & Biases project to log to as well", free=True)},
    "AMP_ENABLE": Key(True, "mixed precision"),
    "AMP_DTYPE": Key(
        "auto",
        "new: mixed-precision dtype; auto: bfloat16 if supported (on a CPU, if it is measured to be faster), else"
        " float16 on CUDA, else float32",
        one_of("auto", "bfloat16", "float16"),
    ),
    "OUTPUT": Key("output", "folder of all runs; a run writes to OUTPUT/MODEL.NAME/TAG", free=True, per_machine=True),
    "TAG": Key("default", "name of the run"),
    "SAVE_FREQ": Key(1, "epochs between checkpoints", at_least(1), free=True),
    "PRINT_FREQ": Key(10, "updates between log lines", at_least(1), free=True),
    "SEED": Key(0, "seed from which all randomness is derived", at_least(0)),
    "TIMEOUT_MINUTES": Key(30.0, "new: minutes without progress that end a job; 0: never", at_least(0), free=True),
    "EVAL_MODE": Key(False, "evaluate and exit", free=True),
    "DRY_RUN": Key(False, "new: train a few updates, write nothing, estimate time, memory and disk space", free=True),
    "PROFILE": Key(False, "profile a few updates: trace.json, and the slowest operations", free=True),
    "THROUGHPUT_MODE": Key(False, "measure images/s and exit", free=True),
    "AMP_OPT_LEVEL": Key("", "no longer used; O0 turns AMP_ENABLE off", deprecated=True),
    "ENABLE_AMP": Key(False, "no longer used", deprecated=True),
    "FUSED_WINDOW_PROCESS": Key(False, "no longer used", deprecated=True),
    "FUSED_LAYERNORM": Key(False, "no longer used", deprecated=True),
    "LOCAL_RANK": Key(0, "no longer used", deprecated=True),
}


# by MODEL.NAME prefix: hard-coded in the original's SimMIM fine-tuning scripts; overridden by files and options
NAME_DEFAULTS: dict[str, dict[str, Any]] = {
    "simmim_finetune": {
        "AMP_ENABLE": False,
        "MODEL.TABLE_INTERPOLATION": "geometric",
        "TRAIN.LAYER_DECAY_RULE": "simmim",
    },
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens {"A": {"B": leaf}} to {"A.B": leaf}, in order."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(flatten(value, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = value
    return leaves


def _merge(tree: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Merges the keys of one tree into another, in place."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            _merge(tree.setdefault(name, {}), value)
        else:
            tree[name] = value


def add_task(name: str, own: TaskKeys) -> None:
    """Registers a task and its keys."""
    TASKS[name] = own
    _merge(SCHEMA, own.keys)
    KEYS.update(flatten(SCHEMA))


def _with_tasks() -> dict[str, Key]:
    """Registers all tasks/*/keys.py, plain data so that --help does not import torch. Returns all keys."""
    for file in sorted((Path(__file__).resolve().parent.parent / "tasks").glob("*/keys.py")):
        own = import_module(f"tasks.{file.parent.name}.keys").TASK_KEYS
        TASKS[file.parent.name] = own
        _merge(SCHEMA, own.keys)
    return flatten(SCHEMA)


KEYS: dict[str, Key] = _with_tasks()
