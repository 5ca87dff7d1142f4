"""Exports a model for use without this program: ONNX, or torch.export's .pt2.

    python scripts/export.py output/swin_tiny/default/checkpoints/best.pth model.onnx
    python scripts/export.py hub:swin_tiny_patch4_window7_224 model.pt2 --batch 8

The file stores class names, preprocessing and configuration, so scripts/predict.py --model model.onnx needs no other
file. Its logits are compared with the model's before it appears.
"""

import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.loading import dump_config
from scripts.exported_model import NOTES, open_exported
from scripts.open_model import ModelFile, open_model
from utils.checkpoints.contents import TUNED
from utils.errors import CheckpointError, ConfigError, run_to_exit_code
from utils.eval_cache import keep_derived
from utils.files import writing
from utils.script_parser import ScriptParser
from utils.terminal import say

OPSET = 20
TOLERANCE = 1e-4  # difference of logits, relative to the largest
ANY = 2  # batch size of the example input for a dynamic batch


def export(opened: ModelFile, target: Path, batch: int) -> list[str]:
    """Writes and verifies the file; returns log lines about its contents, accuracy and speed.

    Args: batch: images per call, 0: any number. Raises: ConfigError, CheckpointError, ResourceError.
    """
    if getattr(opened.model, "expert_layers", list)():
        problem = "a mixture of experts cannot be exported, since its routing depends on values"
        raise ConfigError("MODEL.TYPE", problem, "predict with its checkpoint")
    if opened.task.unexported:
        problem = f"a model of {opened.task.name} cannot be exported, since {opened.task.unexported}"
        raise ConfigError("TASK", problem, "predict with its checkpoint")
    if not opened.class_names:
        raise ConfigError("TASK", f"a model of {opened.task.name} cannot be exported", "use a classifier")
    images = torch.randn(batch or ANY, opened.channels, *opened.size)
    notes = {
        **{name: opened.task.contents[name] for name in TUNED if name in opened.task.contents},
        "class_names": list(opened.class_names),
        "preprocessing": opened.preprocessing.as_dict(),
        "channels": opened.channels,
        "batch": batch,
        "config": dump_config(opened.cfg),
    }
    write = _write_onnx if target.suffix == ".onnx" else _write_pt2
    with writing(target, "TARGET") as temporary:
        named = temporary.with_name(f"{temporary.name}{target.suffix}")  # both libraries check the suffix
        try:
            form = write(opened.model, images, batch == 0, json.dumps(notes), named)
            lines = _compare(opened, named, batch, target)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
    size = "x".join(map(str, opened.size))
    what = f"{form}, {batch or 'any number of'} images of {size}, {target.stat().st_size / 1e6:.1f} MB"
    return [f"written: {target}: {what}", *lines]


def _write_onnx(model: nn.Module, images: Tensor, dynamic: bool, notes: str, target: Path) -> str:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise ConfigError("TARGET", f"ONNX requires the package {e.name}", "pip install onnx onnxscript") from e
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on operator versions
        program: Any = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            verbose=False,
        )
    program.model.metadata_props[NOTES] = notes
    program.save(target, external_data=False)
    return f"ONNX, opset {OPSET}"


def _write_pt2(model: nn.Module, images: Tensor, dynamic: bool, notes: str, target: Path) -> str:
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}} if dynamic else None
    program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    torch.export.save(program, target, extra_files={NOTES: notes})
    return f"torch.export of torch {torch.__version__}"


@torch.no_grad()
def _compare(opened: ModelFile, path: Path, batch: int, target: Path) -> list[str]:
    """Compares logits with the model's for 1 and 8 images, and speed. Raises: CheckpointError if logits differ."""
    exported, _ = open_exported(path)
    differences = []
    for count in (1, 8):
        images = torch.randn(count, opened.channels, *opened.size)
        expected = opened.model(images)
        differences.append((exported(images) - expected).abs().max() / expected.abs().max())
    worst = torch.stack(differences).max().item()  # NaN if any is
    if not worst < TOLERANCE:
        problem = f"the exported logits differ by {worst:.2g} of the largest"
        raise CheckpointError(str(target), problem, "report this bug")
    images = torch.randn(batch or 8, opened.channels, *opened.size)
    with keep_derived():
        speeds = [_speed(run, images) for run in (exported, opened.model)]
    return [
        f"verified: logits differ by at most {worst:.1g} of the largest, for 1 and for 8 images",
        f"speed: {speeds[0]:.1f} images/s in batches of {len(images)}, {speeds[1]:.1f} before export",
    ]


def _speed(run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    seconds = []
    for _ in range(4):  # the first is warm-up
        begun = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - begun)
    return len(images) / statistics.median(seconds[1:])


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("model", help="checkpoint, hub:NAME, hf:OWNER/NAME or URL")
    parser.add_argument("target", type=Path, help="ends in .onnx or .pt2")
    parser.add_argument("--cfg", default="", metavar="FILE", help="recipe, for weights that do not store one")
    parser.add_argument("--batch", type=int, default=0, help="images per call (default: any number)")
    parser.add_argument("--size", type=int, default=0, help="side of the images (default: as trained)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    if options.target.suffix not in (".onnx", ".pt2"):
        parser.error(f"{options.target}: must end in .onnx or .pt2")
    if options.batch < 0:
        parser.error("--batch must be at least 0")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    overrides = [("TEST.IMG_SIZE", options.size, "--size")] if options.size else []

    def run() -> None:
        for line in export(open_model(options.model, options.cfg, overrides), options.target, options.batch):
            say(line)

    return run_to_exit_code(run, options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
