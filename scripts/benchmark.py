"""Compares speed and memory with those of other libraries; measurements are interleaved in one run. Prints tables and
writes JSON.

    python scripts/benchmark.py model --quick

measures evaluation, training step and peak memory of this program's models and the same models in timm, torchvision
and transformers, each in a separate process.

    python scripts/benchmark.py data

measures data loading: images/s of this program's loader, timm's create_loader with its prefetcher, and torchvision's
ImageFolder with timm's transform, with the same files, augmentation, workers and device. Without --data-path, files
of ImageNet's size and quality (500x375 pixels, JPEG quality 95, about 110 kB) are generated from scikit-learn's two
photographs.

    python scripts/benchmark.py finetune FOLDER... --weights FILE

measures the accuracy of configs/finetune.yaml on small datasets.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from scripts.benchmarks import data, finetune, model
from scripts.benchmarks.interleave import environment
from utils.errors import run_to_exit_code
from utils.files import write_errors
from utils.script_parser import ScriptParser

COMMANDS = {"model": model, "data": data, "finetune": finetune}


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args(argv)
    if options.rounds < 1 or (options.command == "data" and options.images < options.batch_size):
        parser.error("--rounds or --seeds must be at least 1, --images at least --batch-size")
    return run_to_exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.json:
        with write_errors(options.json, "--json"):  # before anything is measured
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.touch()
    result = {**COMMANDS[options.command].run(options), **environment()}
    print(f"\n{result['setting']}\n{result['processor']}, {result['cores']} cores, {result['versions']}")
    for title, text in result["tables"].items():
        print(f"\n{title}\n\n{text}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
