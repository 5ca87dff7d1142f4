"""Averages the weights of several checkpoints of a run. The average often scores better than the last checkpoint.

    python scripts/average_checkpoints.py output/swin_tiny/default averaged.pth
    python scripts/average_checkpoints.py a.pth b.pth c.pth averaged.pth

For a run folder, its newest end-of-epoch checkpoints are averaged, without one that was kept only as the best. The
result can be evaluated, fine-tuned and used for prediction like any checkpoint, but training cannot be resumed from it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.loading import parse_config
from models.weights.load import WRAPPERS
from utils.checkpoints.files import checkpoint_position, list_checkpoints, read_checkpoint
from utils.checkpoints.safe_load import NOTES
from utils.errors import CheckpointError, ConfigError, count, run_to_exit_code
from utils.files import writing
from utils.script_parser import ScriptParser
from utils.terminal import say

# metadata of the weights in a checkpoint
KEPT = (
    *("class_names", "class_colours", "label_values", "held_out"),
    *("preprocessing", "config", "pretrained_windows", "versions"),
)


def average(paths: Sequence[Path], target: Path) -> str:
    """Writes the mean of the weights (EMA if present), computed in float64; other tensors come from the last file.

    Returns: a log line. Raises: CheckpointError, ResourceError.
    """
    sums: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    runs = set()
    for path in paths:
        contents = read_checkpoint(path)
        runs.add(contents.get("config"))
        weights = next((contents[name] for name in WRAPPERS if isinstance(contents.get(name), dict)), contents)
        tensors = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
        if sums and {n: v.shape for n, v in tensors.items()} != {n: v.shape for n, v in sums.items()}:
            raise CheckpointError(str(path), f"not the same model as {paths[0]}", "average checkpoints of one run")
        for name, value in tensors.items():
            mean = value.is_floating_point()
            sums[name] = sums[name] + value.double() if mean and name in sums else value.double() if mean else value
    if not sums:
        raise CheckpointError(str(paths[0]), "has no weights", "name checkpoints")
    model = {n: (v / len(paths)).float() if v.is_floating_point() else v for n, v in sums.items()}
    several = f"; from {len(runs)} runs with different configurations" if len(runs) > 1 else ""
    notes = {key: contents[key] for key in KEPT if key in contents}
    with writing(target, "TARGET", RuntimeError, SafetensorError) as temporary:
        if target.suffix == ".safetensors":
            save_file(model, temporary, metadata={"format": "pt", NOTES: json.dumps(notes)})
        else:
            torch.save({"model": model, **notes}, temporary)
    return f"{target}: mean of {count(len(paths), 'checkpoint')}, {paths[0].name} to {paths[-1].name}{several}"


def checkpoints_of(names: Sequence[Path], last: int) -> list[Path]:
    """Expands run folders to their end-of-epoch checkpoints; returns the last `last` of the combined list (0: all).

    Raises: CheckpointError if a folder has none.
    """
    found: list[Path] = []
    for name in names:
        if not name.is_dir():
            found.append(name)
            continue
        folder = name / "checkpoints" if (name / "checkpoints").is_dir() else name
        own = _latest([path for path in list_checkpoints(folder) if "_step_" not in path.name], _save_freq(folder))
        if not own:
            raise CheckpointError(str(name), "has no end-of-epoch checkpoints", "name the folder of a run, or files")
        found += own
    return found[-last:]


def _latest(newest_first: Sequence[Path], interval: int) -> list[Path]:
    """Returns the checkpoints that were saved one after another up to the newest, oldest first.

    An older one was kept because it is the best: its weights are far from the others'.
    """
    chosen = list(newest_first[:1])
    for path in newest_first[1:]:
        if checkpoint_position(chosen[-1])[0] - checkpoint_position(path)[0] > interval:
            break
        chosen.append(path)
    return chosen[::-1]


def _save_freq(checkpoints: Path) -> int:
    """Returns the epochs between the checkpoints of a run."""
    file = checkpoints.parent / "config.yaml"
    try:
        return int(parse_config(file.read_text(encoding="utf-8"), str(file)).get("SAVE_FREQ", 1))
    except (OSError, ValueError, ConfigError):  # it was copied without its configuration
        return 1


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="checkpoints, or the folder of a run")
    parser.add_argument("target", type=Path, help="file to write, ends in .pth or .safetensors")
    parser.add_argument("--last", type=int, default=0, metavar="N", help="only the last N (default: all)")
    parser.add_argument("--force", action="store_true", help="overwrite the target")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    if options.target.suffix not in (".pth", ".safetensors"):
        parser.error(f"argument target: {options.target} must end in .pth or .safetensors")
    if options.last < 0:
        parser.error("argument --last: must be at least 0")

    def run() -> None:
        if options.target.exists() and not options.force:
            problem = "already exists; the last argument is the file to write"
            raise ConfigError(str(options.target), problem, "use --force to replace it")
        paths = checkpoints_of(options.sources, options.last)
        if len(paths) < 2:
            raise ConfigError(str(paths[0]), "need at least two checkpoints", "name more, or the folder of a run")
        say(average(paths, options.target))

    return run_to_exit_code(run, options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
