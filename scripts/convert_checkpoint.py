"""Converts Swin weights between the places where people have them, and checks the result.

    python scripts/convert_checkpoint.py --cfg configs/swin_tiny.yaml IN.pth OUT.safetensors --to timm

IN may be in any layout (original, timm, torchvision, transformers, mmdetection and its kin), and be a path, an address,
hub:<released model> or hf:<repository>. What is written is in the layout --to, as .pth or .safetensors.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from configs.arguments import model_arguments
from configs.loading import load_config
from models.errors import WeightsError
from models.layouts import LAYOUTS
from models.pretrained import find_weights, load_weights
from models.registry import build_model
from models.released import weights_address
from models.swin_v2 import SwinTransformerV2
from scripts.peers import build_peer
from utils.checkpoint import read_checkpoint
from utils.distributed import World
from utils.downloads import local_file
from utils.errors import show_error


def convert(cfg_path: str, source: str, target: Path, layout: str) -> list[str]:
    """Convert a file; returns lines that say what was read, written and checked.

    Raises: ConfigError, CheckpointError, WeightsError; nothing is written then.
    """
    cfg = load_config(cfg_path)
    found = find_weights(read_checkpoint(local_file(source, World(), address=weights_address)), source)
    arguments: dict[str, Any] = model_arguments(cfg, found.classes if "head.weight" in found.weights else 0)
    model = build_model(cfg.MODEL.TYPE, **arguments).eval()
    lines = [f"read: {load_weights(model, found)}"]
    if isinstance(model, SwinTransformerV2):
        _refuse_other_windows(model, layout)
        arguments["pretrained_window_sizes"] = model.pretrained_windows()
    _refuse_what_is_lost(cfg.MODEL.TYPE, arguments, layout)
    stored = {name: value.contiguous() for name, value in LAYOUTS[layout].from_original(model.state_dict()).items()}
    _write(stored, target, layout)
    lines.append(f"written: {len(stored)} tensors in the layout of {layout}: {target}")
    images = torch.randn(1, arguments["in_chans"], cfg.DATA.IMG_SIZE, cfg.DATA.IMG_SIZE)
    lines.append(_check(layout, cfg.MODEL.TYPE, arguments, read_checkpoint(target), model, images))
    return lines


def _refuse_what_is_lost(family: str, arguments: dict[str, Any], layout: str) -> None:
    if family == "swin_mlp" and layout != "original":
        raise WeightsError(f"{layout} has no Swin-MLP: --to: only original can hold it")
    if arguments["ape"] and layout in ("timm", "torchvision"):
        raise WeightsError(f"{layout} has no absolute position embedding: --to: choose another layout")


def _refuse_other_windows(model: SwinTransformerV2, layout: str) -> None:
    if layout == "torchvision" and model.pretrained_windows() != model.windows():
        raise WeightsError("torchvision has no window of pre-training: --to: choose another layout")


def _write(weights: dict[str, Tensor], target: Path, layout: str) -> None:
    """Under a temporary name, then renamed. The original and mmdetection wrap their weights, the others do not."""
    unfinished = target.with_name(target.name + ".tmp")
    if target.suffix == ".safetensors":
        save_file(weights, unfinished, metadata={"format": "pt"})
    else:
        wrapper = {"original": "model", "mmdetection": "state_dict"}.get(layout)
        torch.save({wrapper: weights} if wrapper else weights, unfinished)
    unfinished.replace(target)


@torch.no_grad()
def _check(
    layout: str, family: str, arguments: dict[str, Any], written: dict[str, Any], model: torch.nn.Module, images: Tensor
) -> str:
    """Read the written file back, and compare outputs with the library it is for, where that is installed."""
    again = find_weights(written, "the written file")
    same = all(torch.equal(value, again.weights[name]) for name, value in model.state_dict().items())
    if not same:
        raise WeightsError(
            f"the written file does not give back the same bits: --to {layout}: this is a bug, report it"
        )
    if layout == "original":
        return "checked: it reads back to the same bits"
    weights = written.get("state_dict", written)
    try:
        peer = build_peer(layout, family, arguments, weights)
    except (RuntimeError, ValueError, AssertionError) as e:
        reason = " ".join(str(e).split())[:200]
        return f"checked: it reads back to the same bits; {layout} cannot build this model ({reason})"
    if peer is None:
        return f"checked: it reads back to the same bits; outputs not compared, {layout} is not installed"
    difference = (peer(images) - model(images)).abs().max().item()
    if not difference < 1e-3:
        raise WeightsError(f"outputs differ by {difference:.2g} from {layout}'s: --to {layout}: do not use the file")
    return f"checked: same bits when read back, and {layout}'s output is equal to {difference:.2g}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT", type=Path, help="ends in .pth or .safetensors")
    parser.add_argument("--cfg", required=True, metavar="FILE", help="configuration of the model")
    parser.add_argument("--to", required=True, choices=sorted([*LAYOUTS, *_ALIASES]), help="layout to write")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    try:
        for line in convert(options.cfg, options.source, options.target, _ALIASES.get(options.to, options.to)):
            print(line)
    except (Exception, KeyboardInterrupt) as error:
        return show_error(error, options.debug, aloud=True)
    return 0


_ALIASES = {"mmsegmentation": "mmdetection", "mmpretrain": "mmdetection"}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
