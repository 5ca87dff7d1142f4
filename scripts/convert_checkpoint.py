"""Converts Swin weights between the layouts of different libraries, and verifies the result.

    python scripts/convert_checkpoint.py --cfg configs/swin_tiny.yaml IN.pth OUT.safetensors --to timm

IN is a path, a URL, hub:<released model> or hf:<repository>, in any layout (original, timm, torchvision, transformers,
mmdetection and relatives). OUT is written in the layout --to, as .pth or .safetensors.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.loading import load_config
from models.backbone import PyramidOptions, SwinBackbone
from models.registry import build, model_options, preprocessing_of
from models.swin import SwinOptions
from models.swin_mlp import SwinMlpOptions
from models.swin_moe import SwinMoeOptions
from models.swin_v2 import ContinuousBackbone, SwinTransformerV2, SwinV2Options
from models.weights.checks import misfits
from models.weights.layouts import LAYOUTS, Layout, Weights
from models.weights.load import Found, find_weights, load_weights
from scripts.other_libraries import build_peer
from tasks.registry import new_task
from utils.checkpoints.contents import TUNED
from utils.checkpoints.downloads import read_weights
from utils.checkpoints.files import read_checkpoint
from utils.checkpoints.safe_load import NOTES
from utils.distributed.world import World
from utils.errors import CheckpointError, ConfigError, one_line, run_to_exit_code
from utils.files import writing
from utils.preprocessing import Preprocessing, image_size
from utils.script_parser import ScriptParser
from utils.terminal import say

ALIASES = ("mmsegmentation", "swin2mmseg")  # of mmdetection
OTHER_LAYOUT = "choose another layout"


def convert(cfg_path: str, source: str, target: Path, to: str) -> list[str]:
    """Converts a file; returns log lines on reading, writing and verification.

    Names and layout change; values, dtypes and sizes do not. The file appears once verified.
    Args: to: a layout, or a library that shares one. Raises: ConfigError, CheckpointError, ResourceError.
    """
    cfg = load_config(cfg_path)
    contents = read_weights(source)
    task = new_task(cfg, World(), contents)
    if task.layouts:
        from scripts.convert_whole import convert_whole  # which imports this module

        return convert_whole(task, contents, source, target, "mmdetection" if to in ALIASES else to)
    found = find_weights(contents, source)
    options = model_options(cfg)
    if not isinstance(options, PyramidOptions):
        raise ConfigError("--cfg", f"only Swin models can be converted, not {cfg_path}", "name a Swin recipe")
    options = replace(options, num_classes=found.classes)
    model = _model(options, found)
    lines = [f"read: {load_weights(model, found)}"]
    name = "mmdetection" if to in ALIASES or (to == "mmpretrain" and model.family != "swinv2") else to
    layout = LAYOUTS[name]
    _check_layout(options, layout.name)
    _check_windows(model, layout, target)
    stored = _stored(found.weights, model, layout)
    pixels = (Preprocessing.stored(contents) or preprocessing_of(options)).configured(cfg, options.in_chans)
    notes = {name: contents.get(name) for name in ("class_names", "held_out", *TUNED)} | {
        "pretrained_windows": _known_windows(model, found)
    }
    notes = {key: value for key, value in notes.items() if value} | {"preprocessing": pixels.as_dict()}
    with writing(target, "OUT", SafetensorError) as temporary:
        dropped = write_weights(stored, notes, temporary, layout.name)
        again = find_weights(read_checkpoint(temporary), "the written file")
        _check_bits(found, again, model, _model(options, again))
        compared = _compare(layout.name, options, stored, model).replace(layout.name, to)
    lines.append(f"written: {len(stored)} tensors in the layout of {to}{dropped}: {target}")
    return [*lines, f"verified: bit-identical when read back; {compared}"]


def _known_windows(model: SwinBackbone, found: Found) -> list[int]:
    """Returns the pre-training window sizes if the file or the configuration contains them."""
    if isinstance(model, ContinuousBackbone) and (found.windows or model.is_configured()):
        return model.pretrained_windows()
    return []


def _model(options: PyramidOptions, found: Found) -> SwinBackbone:
    """Builds the configured model. Raises: CheckpointError if the file has a different size."""
    model = build(options).eval()
    assert isinstance(model, SwinBackbone)
    wrong = misfits(found.weights, model.state_dict())
    if wrong and found.family == model.family:
        shapes = f"{tuple(found.weights[wrong[0]].shape)} for {tuple(model.state_dict()[wrong[0]].shape)}"
        problem = f"not of the configured size, {wrong[0]} {shapes}, and conversion does not resize"
        raise CheckpointError(found.origin, problem, "use the --cfg it was trained with")
    return model


def _check_layout(options: PyramidOptions, layout: str) -> None:
    """Checks that the layout can represent the model. Raises: CheckpointError."""
    for family, title in ((SwinMlpOptions, "Swin-MLP"), (SwinMoeOptions, "Swin-MoE")):
        if isinstance(options, family) and layout != "original":
            raise CheckpointError("--to", f"{layout} has no {title}", "choose original")
    if isinstance(options, SwinV2Options) and layout == "mmdetection":
        raise CheckpointError("--to", "mmdetection and mmsegmentation have no Swin V2", "choose mmpretrain")
    if options.ape and layout in ("timm", "torchvision"):
        raise CheckpointError("--to", f"{layout} has no absolute position embedding", OTHER_LAYOUT)
    scaled = isinstance(options, SwinOptions) and options.qk_scale
    if scaled and layout in ("timm", "torchvision", "transformers"):
        raise CheckpointError("--to", f"{layout} has no QK_SCALE", OTHER_LAYOUT)


def _check_windows(model: SwinBackbone, layout: Layout, target: Path) -> None:
    """Checks that the file can store a V2's pre-training window sizes if it differs. Raises: CheckpointError."""
    if not isinstance(model, SwinTransformerV2) or model.pretrained_windows() == model.windows():
        return
    if layout.name == "torchvision":
        raise CheckpointError("--to", "torchvision cannot store the pre-training window size", OTHER_LAYOUT)
    if layout.name == "transformers" and target.suffix == ".pth":
        problem = "a transformers .pth file cannot store the pre-training window size"
        raise CheckpointError(str(target), problem, "name a .safetensors file")


def _stored(weights: Weights, model: SwinBackbone, layout: Layout) -> Weights:
    """Returns the weights and the buffers stored in files of this layout."""
    buffers = {name: value for name, value in model.named_buffers() if name.endswith(layout.stores or ("-",))}
    for name, value in buffers.items():
        if name.endswith("relative_coords_table"):
            side = round(len(value) ** 0.5)
            buffers[name] = value.view(1, side, side, 2)
    return {name: value.clone() for name, value in layout.from_original({**weights, **buffers}).items()}


def write_weights(weights: Weights, notes: dict[str, Any], target: Path, layout: str) -> str:
    """Writes weights and, if the format allows, metadata; returns a remark on omitted metadata.

    The original and the mm libraries wrap their weights; timm reads both, the others do not.
    """
    if target.suffix == ".safetensors":
        save_file(weights, target, metadata={"format": "pt", **({NOTES: json.dumps(notes)} if notes else {})})
        return ""
    needed = notes.keys() & {"class_names", "pretrained_windows"}
    flat = layout in ("transformers", "torchvision") or (layout == "timm" and not needed)
    wrapper = "model" if layout == "original" else "state_dict"
    try:
        torch.save(weights if flat else {wrapper: weights, **notes}, target)
    except RuntimeError as e:  # raised by torch on write errors
        raise OSError(None, str(e).splitlines()[0]) from e
    return " (it cannot store the class names)" if flat and "class_names" in notes else ""


def _check_bits(found: Found, again: Found, model: SwinBackbone, reloaded: SwinBackbone) -> None:
    """Checks that the written file yields the same weights and, with the same configuration, the same model."""
    load_weights(reloaded, again)
    same = found.weights.keys() == again.weights.keys() and all(
        torch.equal(value, again.weights[name]) and value.dtype == again.weights[name].dtype
        for name, value in found.weights.items()
    )
    buffers = zip(model.buffers(), reloaded.buffers(), strict=True)
    if not same or not all(torch.equal(one, other) for one, other in buffers):
        raise CheckpointError(found.origin, "the written file differs when read back", "report this bug")


@torch.no_grad()
def _compare(layout: str, options: PyramidOptions, stored: Weights, model: SwinBackbone) -> str:
    """Compares outputs with the target library, if it is installed."""
    if layout == "original":
        return "the layout is this program's"
    if isinstance(model, SwinTransformerV2) and isinstance(options, SwinV2Options):
        options = replace(options, pretrained_window_sizes=tuple(model.pretrained_windows()))
    try:
        peer = build_peer(layout, options, {k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    except (RuntimeError, ValueError, AssertionError) as e:
        if not options.num_classes:
            return f"outputs not compared: {layout} has no model without a head"
        raise CheckpointError("--to", f"{layout} cannot build this model ({one_line(e)[:200]})", OTHER_LAYOUT) from e
    if peer is None:
        return f"outputs not compared: {layout} is not installed"
    images = torch.randn(1, options.in_chans, *image_size(options.img_size))
    difference = (peer(images) - model(images)).abs().max().item()
    if not difference < 1e-3:
        raise CheckpointError("--to", f"outputs differ by {difference:.2g} from {layout}'s", "report this bug")
    return f"outputs equal {layout}'s to within {difference:.2g}"


def _output_file(name: str) -> Path:
    path = Path(name)
    if path.suffix not in (".pth", ".safetensors"):
        raise argparse.ArgumentTypeError(f"{name}: the file name must end in .pth or .safetensors")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{name} is a folder; name a file")
    return path


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT", type=_output_file, help="ends in .pth or .safetensors")
    parser.add_argument("--cfg", required=True, metavar="FILE", help="configuration of the model")
    parser.add_argument("--to", required=True, choices=sorted([*LAYOUTS, *ALIASES]), help="layout to write")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)

    def run() -> None:
        for line in convert(options.cfg, options.source, options.target, options.to):
            say(line)

    return run_to_exit_code(run, options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
