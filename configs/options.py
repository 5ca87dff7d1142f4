"""The command line: the original's options, each of which overrides one configuration key."""

import argparse
import logging
import os
import sys
from typing import Any, NamedTuple, NoReturn

from configs.loading import load_config
from utils.errors import EXIT_CODES, ConfigError, did_you_mean, report_error

# option -> (key, value when the option is a switch or None when it takes one, help)
OPTIONS: dict[str, tuple[str, Any, str]] = {
    "--batch-size": ("DATA.BATCH_SIZE", None, "images per rank and micro-batch; auto: as many as fit"),
    "--data-path": ("DATA.DATA_PATH", None, "folder with train/ and val/, each with one folder of images per class"),
    "--zip": ("DATA.ZIP_MODE", True, "read train.zip and val.zip"),
    "--cache-mode": ("DATA.CACHE_MODE", None, "read archives into memory first: part, full or no"),
    "--pretrained": ("MODEL.PRETRAINED", None, "weights to start from"),
    "--resume": ("MODEL.RESUME", None, "checkpoint to resume from, or to evaluate"),
    "--sha256": ("MODEL.SHA256", None, "expected SHA-256 of the file of --pretrained or --resume"),
    "--accumulation-steps": ("TRAIN.ACCUMULATION_STEPS", None, "micro-batches per update"),
    "--use-checkpoint": ("TRAIN.USE_CHECKPOINT", True, "activation checkpointing: less memory, a third more time"),
    "--disable-amp": ("AMP_ENABLE", False, "no mixed precision"),
    "--amp-opt-level": ("AMP_OPT_LEVEL", None, "no longer used (O0: no mixed precision)"),
    "--output": ("OUTPUT", None, "folder of all runs; this one writes to OUTPUT/MODEL.NAME/TAG"),
    "--tag": ("TAG", None, "name of this run"),
    "--eval": ("EVAL_MODE", True, "evaluate --resume FILE and exit"),
    "--profile": ("PROFILE", True, "profile a few updates of the training into trace.json and the log"),
    "--throughput": ("THROUGHPUT_MODE", True, "measure images/s and exit"),
    "--optim": ("TRAIN.OPTIMIZER.NAME", None, "adamw, sgd, fused_adam or fused_lamb"),
    "--fused-window-process": ("FUSED_WINDOW_PROCESS", True, "no longer used"),
    "--fused-layernorm": ("FUSED_LAYERNORM", True, "no longer used"),
    "--local-rank": ("LOCAL_RANK", None, "no longer used: torchrun sets it"),
}


class CommandLine(NamedTuple):
    """The YAML file, and overrides in rising precedence."""

    cfg: str
    overrides: tuple[tuple[str, Any, str], ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: command line: main.py --help lists the options")


def parse_command_line(argv: list[str]) -> CommandLine:
    """Raises: ConfigError for an unknown option (with the nearest one) or a missing value."""
    parser = _Parser(
        prog="main.py",
        allow_abbrev=True,
        description="Train, fine-tune and evaluate Swin Transformers on image folders.",
        epilog="Every key of the configuration can be set with --opts; configs/schema.py lists them. Exit codes: "
        + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
        + ".",
    )
    parser.add_argument("--cfg", metavar="FILE", required=True, help="YAML file, such as configs/swin_tiny.yaml")
    parser.add_argument("--opts", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="override any key")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name, (_, switch, text) in OPTIONS.items():
        if switch is None:
            parser.add_argument(name, metavar=name.rsplit("-", 1)[-1].upper(), help=text)
        else:
            parser.add_argument(name, action="store_const", const=switch, help=text)
    known, unknown = parser.parse_known_args([_dashes(a) for a in argv])
    if unknown:
        near = did_you_mean(unknown[0], ["--cfg", "--opts", "--debug", "--help", *OPTIONS], "main.py --help lists them")
        raise ConfigError(f"unknown option {unknown[0]}: {near}")
    if len(known.opts) % 2:
        raise ConfigError(f"--opts takes pairs of KEY VALUE: {known.opts[-1]} has no value: add it")
    given = [(key, value, "--opts") for key, value in zip(known.opts[::2], known.opts[1::2], strict=True)]
    for name, (key, _, _) in OPTIONS.items():
        value = getattr(known, name[2:].replace("-", "_"))
        if value is not None:
            given.append((key, value, name))
    return CommandLine(known.cfg, tuple(given))


def check_command_line(argv: list[str]) -> None:
    """Ends the program for --help and for mistakes, which need nothing slow to be imported."""
    logging.disable(logging.WARNING)  # what is deprecated is said later
    try:
        load_config(*parse_command_line(argv))
    except ConfigError as error:
        speak = os.environ.get("RANK", "0") == "0"
        sys.exit(report_error(error, speak=speak, debug="--debug" in argv))
    finally:
        logging.disable(logging.NOTSET)


def _dashes(argument: str) -> str:
    """Makes --data_path and --data-path the same option."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
