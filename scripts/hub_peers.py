"""The library beside this program that loads a published model: timm for classifiers, transformers for segmenters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from models.backbone import SwinBackbone
from models.registry import model_options
from models.swin_mlp import SwinMlp
from models.swin_moe import SwinMoe
from models.swin_v2 import SwinTransformerV2, SwinV2Options
from models.weights.layouts import LAYOUTS
from models.weights.parts import whole_from_original
from scripts.open_model import ModelFile
from scripts.other_libraries import Forward, logits_of, timm_arguments, upernet
from utils.errors import one_line

TOLERANCE = 1e-4  # difference of logits
# one of timm's architectures per family suffices, since all arguments are stored
ARCHITECTURES = {"swin": "swin_tiny_patch4_window7_224", "swinv2": "swinv2_tiny_window8_256"}
# entries of timm's configuration that describe timm's pre-trained weights
ORIGIN = ("license", "tag", "url", "hf_hub_id", "origin_url", "paper_name", "paper_ids", "custom_load")


class Peer(NamedTuple):
    """A library that computes the same. `weights`: in its layout; `write`: writes its config.json to a folder; `read`:
    opens the model of a folder."""

    library: str
    weights: Mapping[str, Tensor]
    write: Callable[[Path], None]
    read: Callable[[Path], Forward]


def find_peer(opened: ModelFile) -> tuple[Peer | None, str]:
    """Returns the library that loads a model, or None and the reason."""
    if "transformers" in opened.task.layouts:
        return _in_transformers(opened)
    model, why_not = _timm_model(opened)
    if model is None:
        return None, f"not for timm: {why_not}"

    def write(folder: Path) -> None:
        data = {name: getattr(opened.preprocessing, name) for name in ("mean", "std", "crop_pct")}
        if not opened.cfg.TEST.CROP:
            data |= {"crop_pct": 1.0, "crop_mode": "squash"}
        data |= {"interpolation": opened.preprocessing.interpolation or "bicubic"}
        data |= {"input_size": (opened.channels, *opened.size)}
        names = {"label_names": list(opened.class_names)}
        save_config_for_hf(model, str(folder / "config.json"), model_config=names, data_config=data)

    def read(folder: Path) -> Forward:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    return Peer("timm", model.state_dict(), write, read), ""


@torch.no_grad()
def difference(forward: Forward, expected: nn.Module, images: Tensor) -> float:
    """Returns the largest difference of the logits, relative to their magnitude if above 1."""
    logits = expected(images)
    return float((forward(images) - logits).abs().max() / logits.abs().max().clamp(min=1))


def _in_transformers(opened: ModelFile) -> tuple[Peer | None, str]:
    model: Any = opened.model
    if len(model.feature_info) != 4:
        return None, "not for transformers: its auxiliary head is on the third of four maps"
    weights = whole_from_original(model.state_dict(), LAYOUTS["transformers"], model.encoder_name)
    peer = upernet(model, weights)
    if peer is None:
        return None, "not for transformers: it is not installed, or has no such model"
    peer.config.id2label = dict(enumerate(opened.class_names))
    peer.config.label2id = {name: label for label, name in enumerate(opened.class_names)}
    peer.config.architectures = [type(peer).__name__]

    def read(folder: Path) -> Forward:
        again = type(peer).from_pretrained(folder).eval()
        return lambda images: logits_of(again(images))

    return Peer("transformers", weights, peer.config.save_pretrained, read), ""


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
        apart = difference(peer, opened.model, torch.randn(2, opened.channels, *opened.size))
    except (RuntimeError, AssertionError, ValueError) as e:  # other windows, or an unsupported size
        return None, f"its model differs at {opened.size} ({one_line(e)[:120]})"
    if not apart < TOLERANCE:  # timm shifts a map before padding it to whole windows
        return None, f"its logits differ by {apart:.2g} at {opened.size}"
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
