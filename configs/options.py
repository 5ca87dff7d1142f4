"""The command line: the original's options, each of which overrides one configuration key."""

import argparse
import logging
import re
import sys
from itertools import zip_longest
from typing import Any, NamedTuple, NoReturn

from configs.loading import dump_config, load_config
from configs.schema import KEYS
from configs.synonyms import SYNONYMS, meant_by
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
        "--zip": Option("DATA.ZIP_MODE", "read train.zip and val.zip", True),
        "--cache-mode": Option("DATA.CACHE_MODE", "read archives into memory first: part, full or no"),
    },
    "weights": {
        "--pretrained": Option("MODEL.PRETRAINED", "weights to start from: a file, a URL, hub:NAME, hf:OWNER/NAME"),
        "--resume": Option("MODEL.RESUME", "checkpoint to resume from, or to evaluate"),
        "--sha256": Option("MODEL.SHA256", "expected SHA-256 of the file of --pretrained or --resume"),
    },
    "training": {
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
        "--device": Option("DEVICE", "auto, cuda or cpu"),
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


NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-inf|-nan")


class CommandLine(NamedTuple):
    """The YAML file, and overrides in order of increasing precedence."""

    cfg: str
    overrides: tuple[tuple[str, Any, str], ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        option = re.search(r"--?[a-z][\w-]*", message)
        subject = option[0] if option else "command line"
        raise ConfigError(subject, message.removeprefix(f"argument {subject}: "), "see main.py --help")


def parse_command_line(argv: list[str]) -> CommandLine:
    """Parses the command line. Raises: ConfigError for an unknown option (with the nearest one) or a missing value."""
    parser = _new_parser()
    arguments = [_dashes(a) for a in argv]
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="VALUE"):
        if argument.startswith("--") and argument[2:].partition("=")[0] in SYNONYMS:
            _check_meaning(argument, following)  # before argparse takes it for an abbreviation
    # argparse takes a negative number with an exponent for an option, but nothing that begins with a space
    arguments = [f" {a}" if NEGATIVE.fullmatch(a) else a for a in arguments]
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        _check_meaning(*unknown[:2])
        near = did_you_mean(unknown[0], ["--cfg", "--opts", "--debug", "--help", *OPTIONS], "see main.py --help")
        raise ConfigError(unknown[0], "unknown option", near)
    if len(known.opts) % 2:
        key, _, value = known.opts[-1].partition("=")
        remedy = f"write {key} {value}" if value else "add it"
        raise ConfigError("--opts", f"takes KEY VALUE pairs, but {known.opts[-1]} has no value", remedy)
    given = [(key, value, "--opts") for key, value in zip(known.opts[::2], known.opts[1::2], strict=True)]
    for name, option in OPTIONS.items():
        value = getattr(known, name[2:].replace("-", "_"))
        if value is not None:
            given.append((option.key, value, name))
    return CommandLine(known.cfg, tuple(given))


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
    first.add_argument("--cfg", metavar="FILE", required=True, help="YAML file, or its name in configs/: swin_tiny")
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


def _check_meaning(option: str, value: str = "VALUE") -> None:
    """Rejects an option of another program. Raises: ConfigError that names the equivalent option or key."""
    name, equals, own_value = option.partition("=")
    meant = meant_by(name, KEYS) if name.startswith("-") else None
    if meant is None:
        return
    own = {known.key: each for each, known in OPTIONS.items() if known.key != "AMP_ENABLE"}
    meant = own.get(meant, meant)
    if meant.startswith(name):  # an abbreviation
        return
    value = own_value if equals else "VALUE" if value.startswith("--") else value
    raise ConfigError(name, "unknown option", f"use {meant if meant[0] == '-' else f'--opts {meant} {value}'}")


def check_command_line(argv: list[str]) -> None:
    """Handles --help, --print-config and mistakes, and then exits, before anything slow is imported."""
    accept_any_text()
    logging.disable(logging.WARNING)  # main() warns about deprecated keys
    try:
        cfg = load_config(*parse_command_line(argv))
        if "--print-config" in [_dashes(a) for a in argv]:
            if launched_rank() == 0:
                print(dump_config(cfg), end="")
            sys.exit()
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
