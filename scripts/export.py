"""Exports a model for use without this program: ONNX, or torch.export's .pt2.

    python scripts/export.py output/swin_tiny/default/checkpoints/best.pth model.onnx
    python scripts/export.py hub:swin_tiny_patch4_window7_224 model.pt2 --batch 8

The file stores class names, preprocessing and configuration, so scripts/predict.py --model model.onnx needs no other
file. Its outputs are compared with the model's before it appears.
"""

import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.loading import dump_config
from scripts.exported_model import NOTES, open_exported
from scripts.open_model import ModelFile, open_model
from tasks.export import Export
from utils.checkpoints.contents import CLASSES, TUNED
from utils.errors import CheckpointError, ConfigError, run_to_exit_code
from utils.eval_cache import keep_derived
from utils.files import writing
from utils.script_parser import ScriptParser
from utils.terminal import say

OPSET = 20
TOLERANCE = 1e-4  # of the largest output
ANY = 2  # batch size of the example input for a dynamic batch


def export(opened: ModelFile, target: Path, batch: int) -> list[str]:
    """Writes and verifies the file; returns log lines about its contents, accuracy and speed.

    Args: batch: images per call, 0: any number. Raises: ConfigError, CheckpointError, ResourceError.
    """
    if getattr(opened.model, "expert_layers", list)():
        problem = "a mixture of experts cannot be exported, since its routing depends on values"
        raise ConfigError("MODEL.TYPE", problem, "predict with its checkpoint")
    if opened.exported:
        raise ConfigError("MODEL", "is an exported file already", "name its run or checkpoint")
    if not opened.class_names:
        remedy = "use a classifier, segmenter or detector"
        raise ConfigError("TASK", f"a model of {opened.task.name} cannot be exported", remedy)
    own = opened.task.export(opened.model, batch)
    notes = {
        **{name: opened.task.contents[name] for name in TUNED if name in opened.task.contents},
        **{name: value for name, value in opened.info.as_dict().items() if name in CLASSES},
        "preprocessing": opened.preprocessing.as_dict(),
        "channels": opened.channels,
        "batch": own.batch,
        "outputs": list(own.outputs),
        "config": dump_config(opened.cfg),
    }
    write = _write_onnx if target.suffix == ".onnx" else _write_pt2
    with writing(target, "TARGET") as temporary:
        named = temporary.with_name(f"{temporary.name}{target.suffix}")  # both libraries check the suffix
        try:
            form = write(own, json.dumps(notes), named)
            lines = _compare(own, named, target)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
    size, images = "x".join(map(str, own.size[1:])), "image" if own.batch == 1 else "images"
    what = f"{form}, {own.batch or 'any number of'} {images} of {size}, {target.stat().st_size / 1e6:.1f} MB"
    return [f"written: {target}: {what}", *lines]


def _write_onnx(own: Export, notes: str, target: Path) -> str:
    try:
        import onnx  # noqa: F401
        from onnxscript import opset20
    except ImportError as e:
        raise ConfigError("TARGET", f"ONNX requires the package {e.name}", "pip install onnx onnxscript") from e

    def sort(x: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        shape, axis = opset20.Shape(x), opset20.Constant(value_ints=[dim])
        length = opset20.Gather(cast(Any, shape), cast(Any, axis))
        return opset20.TopK(x, length, axis=dim, largest=int(descending))  # equal values keep their order

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on operator versions
        program: Any = torch.onnx.export(
            own.module.eval(),
            own.example(own.batch or ANY),
            dynamo=True,
            opset_version=OPSET,
            input_names=own.inputs,
            output_names=own.outputs,
            dynamic_shapes=_dynamic(own),
            custom_translation_table={torch.ops.aten.sort.stable: sort},  # which torch cannot translate
            verbose=False,
        )
    program.model.metadata_props[NOTES] = notes
    program.save(target, external_data=False)
    return f"ONNX, opset {OPSET}"


def _write_pt2(own: Export, notes: str, target: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision's operators
        program = torch.export.export(
            own.module.eval(), own.example(own.batch or ANY), dynamic_shapes=_dynamic(own), strict=False
        )
    torch.export.save(program, target, extra_files={NOTES: notes})
    return f"torch.export of torch {torch.__version__}"


def _dynamic(own: Export) -> dict[str, Any] | None:
    return None if own.batch else {"images": {0: torch.export.Dim("batch", min=1)}}


@torch.no_grad()
def _compare(own: Export, path: Path, target: Path) -> list[str]:
    """Compares outputs and speed with the model's. Raises: CheckpointError if the outputs differ."""
    exported, _ = open_exported(path)
    worst, names = own.difference(exported), ", ".join(own.outputs)
    if not worst < TOLERANCE:
        problem = f"the exported {names} differ by {worst:.2g} of the largest"
        raise CheckpointError(str(target), problem, "report this bug")
    inputs = own.example(own.batch or 8)
    with keep_derived():
        speeds = [_speed(run, inputs) for run in (exported, own.module)]
    return [
        f"verified: {names} differ by at most {worst:.1g} of the largest, {own.trial}",
        f"speed: {_rate(speeds[0])} images/s in batches of {len(inputs[0])}, {_rate(speeds[1])} before export",
    ]


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def _speed(run: Callable[..., Any], inputs: Sequence[Tensor]) -> float:
    seconds = []
    for _ in range(4):  # the first is warm-up
        begun = time.perf_counter()
        run(*inputs)
        seconds.append(time.perf_counter() - begun)
    return len(inputs[0]) / statistics.median(seconds[1:])


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("model", help="checkpoint, hub:NAME, hf:OWNER/NAME or URL")
    parser.add_argument("target", type=Path, help="ends in .onnx or .pt2")
    parser.add_argument("--cfg", default="", metavar="FILE", help="recipe, for weights that do not store one")
    parser.add_argument("--batch", type=int, default=0, help="images per call (default: any number; detectors: 1)")
    parser.add_argument(
        "--size", type=int, default=0, help="side of images; detectors: short side (default: as trained)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    if options.target.suffix not in (".onnx", ".pt2"):
        parser.error(f"{options.target}: must end in .onnx or .pt2")
    if options.batch < 0:
        parser.error("--batch must be at least 0")
    for chatty in ("torch.onnx", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    overrides = [("TEST.IMG_SIZE", options.size, "--size")] if options.size else []

    def run() -> None:
        for line in export(open_model(options.model, options.cfg, overrides), options.target, options.batch):
            say(line)

    return run_to_exit_code(run, options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
