"""Converts Swin weights between the places where people have them, and checks the result.

    python scripts/convert_checkpoint.py --cfg configs/swin_tiny.yaml IN.pth OUT.safetensors --to timm

IN may be in any layout (original, timm, torchvision, transformers, mmdetection and its kin), and be a path, an address,
hub:<released model> or hf:<repository>. What is written is in the layout --to, as .pth or .safetensors.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from configs.arguments import model_arguments
from configs.loading import load_config
from models.backbone import SwinBackbone
from models.errors import WeightsError
from models.registry import build_model
from models.swin_v2 import SwinTransformerV2
from models.weights.checks import misfits
from models.weights.layouts import LAYOUTS, Layout, Weights
from models.weights.load import Found, find_weights, load_weights
from models.weights.released import weights_address
from scripts.peers import build_peer
from utils.checkpoints.downloads import local_file
from utils.checkpoints.files import read_checkpoint
from utils.checkpoints.safe_load import NOTES
from utils.distributed import World
from utils.errors import ResourceError, show_error


def convert(cfg_path: str, source: str, target: Path, to: str) -> list[str]:
    """Convert a file; returns lines that say what was read, written and checked.

    Names and forms change, values and types do not: nothing is fitted to another size. The file appears under its name
    when it has passed its checks.
    Args: to: a layout, or a library that shares one. Raises: ConfigError, CheckpointError, WeightsError.
    """
    cfg = load_config(cfg_path)
    contents = read_checkpoint(local_file(source, World(), address=weights_address))
    found = find_weights(contents, source)
    arguments: dict[str, Any] = model_arguments(cfg, found.classes)
    model = _model(cfg.MODEL.TYPE, arguments, found)
    lines = [f"read: {load_weights(model, found)}"]
    layout = LAYOUTS[_layout_of(to, cfg.MODEL.TYPE)]
    windows = model.pretrained_windows() if isinstance(model, SwinTransformerV2) else []
    _refuse_what_is_lost(cfg.MODEL.TYPE, arguments, layout.name)
    _refuse_lost_windows(model, layout, target)
    stored = _stored(found.weights, model, layout)
    notes = {"class_names": contents.get("class_names"), "pretrained_windows": _known_windows(model, found)}
    notes = {key: value for key, value in notes.items() if value}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            unfinished = Path(folder, target.name)
            told = _write(stored, notes, unfinished, layout.name)
            again = find_weights(read_checkpoint(unfinished), "the written file")
            _check_bits(found, again, model, _model(cfg.MODEL.TYPE, arguments, again))
            compared = _compare(
                layout.name, cfg.MODEL.TYPE, {**arguments, "pretrained_window_sizes": windows}, stored, model
            )
            unfinished.replace(target)
    except (OSError, SafetensorError) as e:
        raise ResourceError(f"cannot write the file ({getattr(e, 'strerror', e)}): {target}: name another one") from e
    lines.append(f"written: {len(stored)} tensors in the layout of {layout.name}{told}: {target}")
    return [*lines, f"checked: the same bits when read back; {compared}"]


def _known_windows(model: SwinBackbone, found: Found) -> list[int]:
    """Windows of pre-training, where the file or the configuration tells them."""
    known = isinstance(model, SwinTransformerV2) and (found.windows or model.is_configured())
    return model.pretrained_windows() if isinstance(model, SwinTransformerV2) and known else []


def _model(family: str, arguments: dict[str, Any], found: Found) -> SwinBackbone:
    """Of the configuration. Raises: WeightsError if the file is of another size."""
    model = build_model(family, **arguments).eval()
    assert isinstance(model, SwinBackbone)
    wrong = misfits(found.weights, model.state_dict())
    if wrong and found.family == family:
        shapes = f"{tuple(found.weights[wrong[0]].shape)} for {tuple(model.state_dict()[wrong[0]].shape)}"
        raise WeightsError(
            f"the file is of another size than the configuration: {found.origin}: {wrong[0]} {shapes}:"
            " converting fits nothing, use the --cfg it was made with"
        )
    return model


def _layout_of(to: str, family: str) -> str:
    """mmpretrain stores V1 as mmdetection does."""
    shared = {"mmsegmentation": "mmdetection", "mmpretrain": "mmpretrain" if family == "swinv2" else "mmdetection"}
    return shared.get(to, to)


def _refuse_what_is_lost(family: str, arguments: dict[str, Any], layout: str) -> None:
    if family == "timm":
        raise WeightsError("a model of timm: --cfg: only Swin models are converted")
    if family == "swin_mlp" and layout != "original":
        raise WeightsError(f"{layout} has no Swin-MLP: --to: only original can hold it")
    if family == "swinv2" and layout == "mmdetection":
        raise WeightsError("mmdetection and mmsegmentation have no Swin V2: --to: choose mmpretrain")
    if arguments["ape"] and layout in ("timm", "torchvision"):
        raise WeightsError(f"{layout} has no absolute position embedding: --to: choose another layout")
    if arguments.get("qk_scale") and layout in ("timm", "torchvision", "transformers"):
        raise WeightsError(f"{layout} has no QK_SCALE: --to: choose another layout")


def _refuse_lost_windows(model: SwinBackbone, layout: Layout, target: Path) -> None:
    """Swin V2 trained in another window than the model's: no tensor but the table of coordinates tells."""
    if _own_windows(model):
        return
    if layout.name == "torchvision":
        raise WeightsError("torchvision has no window of pre-training: --to: choose another layout")
    if layout.name == "transformers" and target.suffix == ".pth":
        raise WeightsError(
            f"a .pth file of transformers cannot tell the window of pre-training: {target}: name a .safetensors file"
        )


def _own_windows(model: SwinBackbone) -> bool:
    """Whether it was trained in its own windows, as far as it has any."""
    return not isinstance(model, SwinTransformerV2) or model.pretrained_windows() == model.windows()


def _stored(weights: Weights, model: SwinBackbone, layout: Layout) -> Weights:
    """What goes into the file: the weights, and the buffers that files of this layout hold."""
    buffers = {name: value for name, value in model.named_buffers() if name.endswith(layout.stores or ("-",))}
    for name, value in buffers.items():
        if name.endswith("relative_coords_table"):
            side = round(len(value) ** 0.5)
            buffers[name] = value.view(1, side, side, 2)
    return {name: value.clone() for name, value in layout.from_original({**weights, **buffers}).items()}


def _write(weights: Weights, notes: dict[str, Any], target: Path, layout: str) -> str:
    """Write weights and, where the format can hold them, class names and windows; returns what was left out.

    The original and those of mm wrap their weights; timm reads both ways, the others do not.
    """
    if target.suffix == ".safetensors":
        save_file(weights, target, metadata={"format": "pt", **({NOTES: json.dumps(notes)} if notes else {})})
        return ""
    flat = layout in ("transformers", "torchvision") or (layout == "timm" and not notes)
    wrapper = "model" if layout == "original" else "state_dict"
    try:
        torch.save(weights if flat else {wrapper: weights, **notes}, target)
    except RuntimeError as e:  # torch's way of saying that it cannot write
        raise OSError(None, str(e).splitlines()[0]) from e
    return " (its class names do not fit into it)" if flat and "class_names" in notes else ""


def _check_bits(found: Found, again: Found, model: SwinBackbone, reloaded: SwinBackbone) -> None:
    """The written file gives back the weights, and in the same configuration the same model."""
    load_weights(reloaded, again)
    same = found.weights.keys() == again.weights.keys() and all(
        torch.equal(value, again.weights[name]) and value.dtype == again.weights[name].dtype
        for name, value in found.weights.items()
    )
    buffers = zip(model.buffers(), reloaded.buffers(), strict=True)
    if not same or not all(torch.equal(one, other) for one, other in buffers):
        raise WeightsError(
            f"the written file does not give back the same bits: {found.origin}: this is a bug, report it"
        )


@torch.no_grad()
def _compare(layout: str, family: str, arguments: dict[str, Any], stored: Weights, model: SwinBackbone) -> str:
    """Compare outputs with the library that the file is for, where that is installed."""
    if layout == "original":
        return "the layout is this program's own"
    try:
        peer = build_peer(
            layout, family, arguments, {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}
        )
    except (RuntimeError, ValueError, AssertionError) as e:
        reason = " ".join(str(e).split())[:200]
        if not arguments["num_classes"]:
            return f"outputs not compared, {layout} has no model without a head"
        raise WeightsError(f"{layout} cannot build this model ({reason}): --to: choose another layout") from e
    if peer is None:
        return f"outputs not compared, {layout} is not installed"
    images = torch.randn(1, arguments["in_chans"], arguments["img_size"], arguments["img_size"])
    difference = (peer(images) - model(images)).abs().max().item()
    if not difference < 1e-3:
        raise WeightsError(f"outputs differ by {difference:.2g} from {layout}'s: --to {layout}: do not use the file")
    return f"{layout}'s output is equal to {difference:.2g}"


def _output_file(name: str) -> Path:
    path = Path(name)
    if path.suffix not in (".pth", ".safetensors"):
        raise argparse.ArgumentTypeError(f"{name}: a file's name that ends in .pth or .safetensors")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{name}: this is a folder, name a file")
    return path


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT", type=_output_file, help="ends in .pth or .safetensors")
    parser.add_argument("--cfg", required=True, metavar="FILE", help="configuration of the model")
    parser.add_argument("--to", required=True, choices=sorted([*LAYOUTS, "mmsegmentation"]), help="layout to write")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    try:
        for line in convert(options.cfg, options.source, options.target, options.to):
            print(line)
    except (Exception, KeyboardInterrupt) as error:
        return show_error(error, options.debug, aloud=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
