"""Folder of a model for the Hugging Face hub: weights, timm's config.json, and the model card."""

import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from yacs.config import CfgNode

from configs.loading import dump_config, flat_config, is_local
from configs.schema import KEYS
from models.backbone import SwinBackbone
from models.registry import model_options
from models.swin_mlp import SwinMlp
from models.swin_moe import SwinMoe
from models.swin_v2 import SwinTransformerV2, SwinV2Options
from models.weights.layouts import LAYOUTS
from scripts.model_card import Card, model_card
from scripts.open_model import ModelFile, open_model
from scripts.other_libraries import timm_arguments
from utils.checkpoints.contents import JUDGED, TUNED
from utils.checkpoints.safe_load import NOTES
from utils.errors import CheckpointError, one_line
from utils.files import write_text

WEIGHTS = "model.safetensors"
TOLERANCE = 1e-4  # difference of logits
STORED = ("class_names", "category_ids", "class_colours", "label_values")  # of the data
# one of timm's architectures per family suffices, since all arguments are stored
ARCHITECTURES = {"swin": "swin_tiny_patch4_window7_224", "swinv2": "swinv2_tiny_window8_256"}

# entries of timm's configuration that describe timm's pre-trained weights
ORIGIN = ("license", "tag", "url", "hf_hub_id", "origin_url", "paper_name", "paper_ids", "custom_load")


def write_folder(opened: ModelFile, folder: Path, card: Card) -> list[str]:
    """Writes the folder, reads it back and compares the weights, and the logits in timm, with the model's.

    Returns: log lines. Raises: CheckpointError if they differ; OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    peer, why_not = _timm_model(opened)
    notes: dict[str, Any] = {
        **{name: opened.task.contents[name] for name in (*TUNED, *JUDGED) if name in opened.task.contents},
        **{name: value for name, value in opened.info.as_dict().items() if name in STORED},
        "config": _published(opened.cfg),
        "preprocessing": opened.preprocessing.as_dict(),
    }
    windows: list[int] = getattr(opened.model, "pretrained_windows", list)()
    if windows:
        notes["pretrained_windows"] = windows
    weights = opened.model.state_dict() if peer is None else peer.state_dict()
    tensors = {name: value.contiguous() for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", NOTES: json.dumps(notes)})
    (folder / "config.json").unlink(missing_ok=True)
    if peer is not None:
        data = {name: getattr(opened.preprocessing, name) for name in ("mean", "std", "crop_pct")}
        if not opened.cfg.TEST.CROP:
            data |= {"crop_pct": 1.0, "crop_mode": "squash"}
        data |= {"interpolation": opened.preprocessing.interpolation or "bicubic"}
        data |= {"input_size": (opened.channels, *opened.size)}
        names = {"label_names": list(opened.class_names)}
        save_config_for_hf(peer, str(folder / "config.json"), model_config=names, data_config=data)
    write_text(folder / "README.md", model_card(opened, card, in_timm=peer is not None))
    written = f"written: {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}"
    return [written, *([f"not for timm: {why_not}"] if peer is None else []), _verify(opened, folder)]


def _published(cfg: CfgNode) -> str:
    """Returns a configuration as YAML text, with the defaults of keys that name files or describe a machine."""
    own = cfg.clone()
    own.defrost()
    for name, value in flat_config(cfg).items():
        if is_local(name, value):
            *groups, leaf = name.split(".")
            reduce(getitem, groups, own)[leaf] = KEYS[name].default
    return dump_config(own)


def _timm_model(opened: ModelFile) -> tuple[nn.Module | None, str]:
    """Returns the same model in timm, with its weights; or None and the reason."""
    if opened.cfg.MODEL.TYPE == "timm":
        return opened.model, ""
    options: Any = model_options(opened.cfg)
    if not isinstance(opened.model, SwinBackbone) or isinstance(opened.model, SwinMlp | SwinMoe):
        return None, f"it has no {type(opened.model).__name__}"
    if options.ape or getattr(options, "qk_scale", None):
        return None, "its Swin Transformer has no absolute position embedding and no custom scale of the scores"
    try:
        peer = _in_timm(opened, options)
        difference = _difference(peer, opened.model, torch.randn(2, opened.channels, *opened.size))
    except (RuntimeError, AssertionError, ValueError) as e:  # other windows, or an unsupported size
        return None, f"its model differs at {opened.size} ({one_line(e)[:120]})"
    if not difference < TOLERANCE:  # timm shifts a map before padding it to whole windows
        return None, f"its logits differ by {difference:.2g} at {opened.size}"
    return peer, ""


def _in_timm(opened: ModelFile, options: Any) -> nn.Module:
    family: Any = opened.model.family
    arguments = timm_arguments(options) | {"num_classes": len(opened.class_names), "img_size": opened.size}
    if isinstance(options, SwinV2Options) and isinstance(opened.model, SwinTransformerV2):
        arguments["pretrained_window_sizes"] = tuple(opened.model.pretrained_windows())
    model: Any = timm.create_model(ARCHITECTURES[family], **arguments)
    weights = LAYOUTS["timm"].from_original(opened.model.state_dict())
    model.load_state_dict({**model.state_dict(), **weights})
    for name in ORIGIN:
        model.pretrained_cfg.pop(name, None)
    return model.eval()


@torch.no_grad()
def _difference(model: nn.Module, expected: nn.Module, images: Tensor) -> float:
    """Returns the largest difference of the logits, relative to their magnitude if above 1."""
    logits = expected(images)
    return float((model(images) - logits).abs().max() / logits.abs().max().clamp(min=1))


def _verify(opened: ModelFile, folder: Path) -> str:
    """Reads the folder as its users will. Raises: CheckpointError."""
    read, own = open_model(str(folder / WEIGHTS)).model.state_dict(), opened.model.state_dict()
    if read.keys() != own.keys() or not all(torch.equal(value, read[name]) for name, value in own.items()):
        raise CheckpointError(str(folder), "the weights differ when read back", "do not use it")
    if not (folder / "config.json").exists():
        return "verified: same weights in this program"
    peer = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    difference = _difference(peer, opened.model, torch.randn(2, opened.channels, *opened.size))
    if not difference < TOLERANCE:
        raise CheckpointError(str(folder), f"logits differ by {difference:.2g} in timm", "do not use it")
    return "verified: same weights in this program, same logits in timm"
