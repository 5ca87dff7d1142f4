"""Checks, packs, resizes, sorts or shows a dataset before a run.

python scripts/prepare_data.py check FOLDER            decode every file; counts, classes, duplicates
python scripts/prepare_data.py split FOLDER TARGET     divide class folders into train/ and val/, or into folds
python scripts/prepare_data.py zip FOLDER TARGET       write train.zip and val.zip with their maps, for --zip
python scripts/prepare_data.py resize FOLDER TARGET    copy with smaller images
python scripts/prepare_data.py val-folders FOLDER      move flat ImageNet validation images into class folders
python scripts/prepare_data.py show FOLDER SHEET.png   draw augmented training images with their labels
"""

import argparse
import io
import os
import sys
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.checks import grouping
from data.sources.base import opening
from data.tools.checking import Report, check_folder
from data.tools.checking_objects import check_objects, has_objects
from data.tools.checking_pairs import check_pairs, has_pairs
from data.tools.division import DivisionOptions
from data.tools.packing import pack, resize_copy, sort_validation
from data.tools.split_copy import split_copy
from utils.errors import count, printable, run_to_exit_code
from utils.script_parser import ScriptParser
from utils.terminal import say

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "swin_tiny.yaml"
FOUND = 3  # exit code of a check with findings


def check(options: argparse.Namespace) -> int:
    """Prints facts and findings; returns 3 if there are any findings."""
    with opening(options.folder):
        kinds = ((has_objects, check_objects), (has_pairs, check_pairs))
        fitting = [check for fits, check in kinds if fits(options.folder)] or [check_folder]
        reports = [check(options.folder, options.workers, options.channels) for check in fitting]
    report = Report([*chain(*(r.facts for r in reports))], [*chain(*(r.findings for r in reports))])
    say(*report.facts, *(f"found: {finding}" for finding in report.findings))
    if report.findings:
        print(printable(f"{count(len(report.findings), 'finding')}: {options.folder}"), file=sys.stderr)
    else:
        say(f"nothing found: {options.folder} is ready for training")
    return FOUND if report.findings else 0


def split(options: argparse.Namespace) -> int:
    division = DivisionOptions(options.fraction, options.seed, options.group_by, not options.ignore_duplicates)
    with opening(options.folder):
        made = split_copy(options.folder, options.target, division, options.folds)
    for folder, (train, val) in made.items():
        say(f"{folder}: {train:,} training and {val:,} validation images")
    return 0


def zip_(options: argparse.Namespace) -> int:
    with opening(options.folder):
        packed = pack(options.folder, options.target, replace=options.force)
    for part, images in packed.items():
        say(f"{options.target / part}.zip: {images:,} images, read back and compared")
    return 0


def resize(options: argparse.Namespace) -> int:
    sizes = (options.short_side, options.quality)
    with opening(options.folder):
        copied, smaller = resize_copy(options.folder, options.target, *sizes, options.workers)
    say(f"{options.target}: {copied:,} images, {smaller:,} of them resized")
    return 0


def val_folders(options: argparse.Namespace) -> int:
    with opening(options.folder):
        moved = sort_validation(options.folder)
    done = f"{moved:,} images moved into folders of their classes" if moved else "already sorted, nothing to do"
    say(f"{options.folder / 'val'}: {done}")
    return 0


def show(options: argparse.Namespace) -> int:
    # torch and timm take seconds to import and are not needed by the other commands
    from configs.loading import load_config
    from tasks.registry import new_task
    from tasks.show import draw_samples
    from utils.distributed.world import World

    given = {"DATA.DATA_PATH": str(options.folder), "TEST.VALIDATE": False}
    cfg = load_config(options.cfg, [(key, value, "command line") for key, value in given.items()])
    drawn = draw_samples(new_task(cfg, World()), options.sheet, max(1, options.count), options.seed)
    say(f"{options.sheet}: {drawn} training images as {options.cfg} augments them")
    return 0


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function, target in (
        ("check", check, None),
        ("split", split, "target"),
        ("zip", zip_, "target"),
        ("resize", resize, "target"),
        ("val-folders", val_folders, None),
        ("show", show, "sheet"),
    ):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        either = ", class folders, or images/ and labels/, or annotated objects" if name in ("check", "show") else ""
        about = "class folders" if name == "split" else f"contains train/ and val/{either}"
        command.add_argument("folder", type=Path, help=about)
        if target:
            command.add_argument(target, type=Path)
        if name in ("check", "resize"):
            command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: cores)")
        if name == "check":
            command.add_argument("--channels", type=int, default=3, help="IN_CHANS of the model (default %(default)s)")
        if name == "split":
            command.add_argument("--fraction", type=float, default=0.2, help="to hold out (default %(default)s)")
            command.add_argument("--folds", type=int, default=0, help="number of folds, instead of one split")
            command.add_argument("--group-by", default="", help="images that stay together, as for DATA.GROUP_BY")
            command.add_argument("--ignore-duplicates", action="store_true", help="do not look for near-duplicates")
            command.add_argument("--seed", type=int, default=0, help="default %(default)s")
        if name == "zip":
            command.add_argument("--force", action="store_true", help="replace existing archives")
        if name == "resize":
            command.add_argument("--short-side", type=int, default=320, help="maximum, pixels (default %(default)s)")
            command.add_argument("--quality", type=int, default=90, help="JPEG quality (default %(default)s)")
        if name == "show":
            command.add_argument("--cfg", type=Path, default=RECIPE, help="recipe to augment with (default: swin_tiny)")
            command.add_argument("--count", type=int, default=32, help="images (default %(default)s)")
            command.add_argument("--seed", type=int, default=0, help="default %(default)s")
    options = parser.parse_args(argv)
    if options.command == "split":
        problem = grouping(options.group_by)
        if problem or not 0 < options.fraction < 1 or options.folds < 0 or options.folds == 1:
            parser.error(
                f"--group-by {problem}" if problem else "--fraction must be in (0, 1), --folds 0 or at least 2"
            )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may contain any bytes
    return run_to_exit_code(lambda: options.function(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
