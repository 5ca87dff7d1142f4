"""The command line: the original's options, each of which overrides one configuration key."""

import argparse
import logging
import os
import re
import sys
from typing import Any, NamedTuple, NoReturn

from yacs.config import CfgNode

from configs.advice import NEGATIVE, KnownOptions, check_words
from configs.loading import architecture_of, dump_config, find_config, load_config
from utils.errors import EXIT_CODES, ConfigError, accept_any_text, did_you_mean, report_error
from utils.rank import launched_rank, let_main_rank_fail


class Option(NamedTuple):
    """A command-line option that sets `key`: to `value` if it is a switch, else to its argument."""

    key: str
    about: str
    value: Any = None


# by group, as --help shows them
GROUPS: dict[str, dict[str, Option]] = {
    "data": {
        "--data-path": Option("DATA.DATA_PATH", "folder with train/ and val/, each with a folder of images per class"),
        "--batch-size": Option("DATA.BATCH_SIZE", "images per rank and micro-batch"),
        "--img-size": Option("DATA.IMG_SIZE", "side of the images in pixels, or [height, width]"),
        "--workers": Option("DATA.NUM_WORKERS", "loader processes per rank, 0 for none"),
        "--zip": Option("DATA.ZIP_MODE", "read train.zip and val.zip", True),
        "--cache-mode": Option("DATA.CACHE_MODE", "read archives into memory first: part, full or no"),
    },
    "weights": {
        "--pretrained": Option(
            "MODEL.PRETRAINED", "weights to start from: a file, a URL, hub:NAME, timm:NAME, hf:OWNER/NAME"
        ),
        "--resume": Option("MODEL.RESUME", "checkpoint to resume from, or to evaluate"),
        "--sha256": Option("MODEL.SHA256", "expected SHA-256 of the file of --pretrained or --resume"),
    },
    "training": {
        "--epochs": Option("TRAIN.EPOCHS", "epochs, including warm-up"),
        "--warmup-epochs": Option("TRAIN.WARMUP_EPOCHS", "epochs of warm-up, or a fraction of one"),
        "--lr": Option("TRAIN.LR", "peak learning rate; without it, BASE_LR per 512 images of global batch"),
        "--weight-decay": Option("TRAIN.WEIGHT_DECAY", "weight decay of matrices"),
        "--optim": Option("TRAIN.OPTIMIZER.NAME", "adamw, sgd, fused_adam or fused_lamb"),
        "--accumulation-steps": Option("TRAIN.ACCUMULATION_STEPS", "micro-batches per update"),
        "--use-checkpoint": Option(
            "TRAIN.USE_CHECKPOINT", "activation checkpointing: less memory, 1/3 more time", True
        ),
        "--enable-amp": Option("AMP_ENABLE", "mixed precision, the default", True),
        "--disable-amp": Option("AMP_ENABLE", "no mixed precision", False),
    },
    "the run": {
        "--output": Option("OUTPUT", "folder of all runs; this one writes to OUTPUT/MODEL.NAME/TAG"),
        "--tag": Option("TAG", "name of this run"),
        "--seed": Option("SEED", "seed from which all randomness is derived"),
        "--device": Option("DEVICE", "auto, cpu, cuda, cuda:N or mps"),
    },
    "instead of training": {
        "--eval": Option("EVAL_MODE", "evaluate --resume FILE", True),
        "--dry-run": Option("DRY_RUN", "train a few updates, write nothing, estimate time, memory, disk space", True),
        "--throughput": Option("THROUGHPUT_MODE", "measure images/s", True),
        "--profile": Option("PROFILE", "train, and profile a few updates to trace.json and the log", True),
    },
    "accepted for scripts of the original": {
        "--amp-opt-level": Option("AMP_OPT_LEVEL", "O0: same as --disable-amp"),
        "--fused-window-process": Option("FUSED_WINDOW_PROCESS", "", True),
        "--fused-layernorm": Option("FUSED_LAYERNORM", "", True),
        "--local-rank": Option("LOCAL_RANK", ""),
    },
}
OPTIONS = {name: option for group in GROUPS.values() for name, option in group.items()}
KNOWN = KnownOptions(
    all=("--cfg", "--model", "--opts", "--print-config", "--debug", "--help", *OPTIONS),
    switches=[name for name, option in OPTIONS.items() if option.value is not None],
    by_key={option.key: name for name, option in OPTIONS.items() if option.key != "AMP_ENABLE"},
)
DEFAULT_RECIPE = "swin_tiny"  # for --model timm:NAME


class CommandLine(NamedTuple):
    """The YAML file, "" if the recipe is stored in the weights, and overrides in order of increasing precedence."""

    cfg: str
    overrides: tuple[tuple[str, Any, str], ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        option = re.search(r"--?[a-z][\w-]*", message)
        subject = option[0] if option else "command line"
        about = OPTIONS[subject].about if subject in OPTIONS else ""
        remedy = about if "expected one argument" in message else ""
        raise ConfigError(subject, message.removeprefix(f"argument {subject}: "), remedy or "see main.py --help")


def parse_command_line(argv: list[str]) -> CommandLine:
    """Parses the command line. Raises: ConfigError for an unknown option (with the nearest one) or a missing value."""
    arguments = [_dashes(a) for a in argv]
    check_words(arguments, KNOWN)  # before argparse takes one for an abbreviation
    # argparse takes a negative number with an exponent for an option, but nothing that begins with a space
    arguments = [f" {a}" if NEGATIVE.fullmatch(a) else a for a in arguments]
    known, unknown = _new_parser().parse_known_args(arguments)
    if unknown:
        raise _unknown(unknown[0])
    if len(known.opts) % 2:
        key, _, value = known.opts[-1].partition("=")
        remedy = f"write {key} {value}" if value else "add it"
        raise ConfigError("--opts", f"takes KEY VALUE pairs, but {known.opts[-1]} has no value", remedy)
    given = [(key, value, "--opts") for key, value in zip(known.opts[::2], known.opts[1::2], strict=True)]
    for name, option in OPTIONS.items():
        value = getattr(known, name[2:].replace("-", "_"))
        if value is not None:
            given.append((option.key, value, name))
    cfg, model = _recipe(known.cfg, known.model, {key: value for key, value, _ in given})
    return CommandLine(cfg, (*model, *given))


def _unknown(argument: str) -> ConfigError:
    """Returns the error for an argument that nothing takes."""
    word, equals, value = argument.partition("=")
    if equals and not argument.startswith("-"):  # as ultralytics writes its options
        check_words([f"--{word}", value], KNOWN)
        near = did_you_mean(word, KNOWN.all, "see main.py --help")
        return ConfigError(argument, "not an option", f"write --{word} {value}" if f"--{word}" in KNOWN.all else near)
    if os.path.exists(argument):
        option = "--cfg" if argument.endswith((".yaml", ".yml")) else "--data-path"
        option = option if option == "--cfg" or os.path.isdir(argument) else "--resume"
        return ConfigError(argument, "no option takes this argument", f"write {option} {argument}")
    return ConfigError(argument, "unknown option", did_you_mean(argument, KNOWN.all, "see main.py --help"))


def _recipe(cfg: str, model: str, given: dict[str, Any]) -> tuple[str, list[tuple[str, Any, str]]]:
    """Returns the recipe, and the keys that set the architecture of --model.

    Raises: ConfigError without a recipe, unless the weights to evaluate may store it.
    """
    kind, _, name = model.partition(":")
    if kind == "timm":
        keys = {"MODEL.TYPE": "timm", "MODEL.TIMM.NAME": name, "MODEL.NAME": name}
        return cfg or DEFAULT_RECIPE, [(key, value, "--model") for key, value in keys.items()]
    if model and cfg:
        return cfg, architecture_of(model, "--model")
    if cfg or model:
        return cfg or str(find_config(model, "--model")), []
    weights = next((str(given[key]).strip() for key in ("MODEL.RESUME", "MODEL.PRETRAINED") if given.get(key)), "")
    evaluates, measures = (str(given.get(key)).lower() == "true" for key in ("EVAL_MODE", "THROUGHPUT_MODE"))
    if not (evaluates or (measures and weights)):
        raise ConfigError("--cfg", "no recipe", "name a YAML file or a recipe of configs/, such as --cfg swin_tiny")
    return weights.partition(":")[2] if weights.startswith("hub:") and "," not in weights else "", []


def _new_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        allow_abbrev=True,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
        usage="main.py --cfg FILE [options] [--opts KEY VALUE ...]",
        description="Train, fine-tune and evaluate Swin Transformers on image folders.",
        epilog="Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    )
    first = parser.add_argument_group("configuration")
    first.add_argument("--cfg", metavar="FILE", default="", help="YAML file, or its name in configs/: swin_tiny")
    first.add_argument(
        "--model", metavar="NAME", default="", help="model of a recipe in configs/, or of timm, timm:NAME"
    )
    first.add_argument(
        "--opts",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="set any key of the configuration (docs/configuration.md)",
    )
    first.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    first.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for name, option in options.items():
            text = f"{option.about} [{option.key}]".strip()
            if option.value is None:
                group.add_argument(name, metavar=name.rsplit("-", 1)[-1].upper(), help=text)
            else:
                group.add_argument(name, action="store_const", const=option.value, help=text)
    return parser


def check_command_line(argv: list[str]) -> CfgNode:
    """Returns the configuration before anything slow is imported; handles --help, --print-config and mistakes, and
    exits then."""
    accept_any_text()
    logging.disable(logging.WARNING)  # main() warns about deprecated keys
    try:
        command = parse_command_line(argv)
        cfg = load_config(*command)
        if "--print-config" in [_dashes(a) for a in argv]:
            if not command.cfg:
                raise ConfigError("--print-config", "the recipe is stored in the weights", "name it with --cfg")
            if launched_rank() == 0:
                print(dump_config(cfg), end="")
            sys.exit()
        return cfg
    except ConfigError as error:
        sys.exit(report_error(error, speak=let_main_rank_fail(), debug="--debug" in argv))
    finally:
        logging.disable(logging.NOTSET)


def _dashes(argument: str) -> str:
    """Returns the argument with dashes in its option name: --data_path becomes --data-path."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
