"""Folder of a model for the Hugging Face hub: weights, timm's config.json, model card."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import EvalResult, ModelCardData
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from configs.loading import dump_config
from models.backbone import SwinBackbone
from models.registry import model_options
from models.swin_mlp import SwinMlp
from models.swin_moe import SwinMoe
from models.swin_v2 import ContinuousBackbone, SwinTransformerV2, SwinV2Options
from models.weights.layouts import LAYOUTS
from scripts.open_model import ModelFile, open_model
from scripts.other_libraries import timm_arguments
from tasks.classification.class_names import in_words
from utils.checkpoints.contents import TUNED
from utils.checkpoints.safe_load import NOTES
from utils.cost import count_flops, count_parameters
from utils.errors import CheckpointError, one_line
from utils.files import write_text

WEIGHTS = "model.safetensors"
SHOWN = 100  # maximum classes listed in the card
TOLERANCE = 1e-4  # difference of logits
# one of timm's architectures per family suffices, since all arguments are stored
ARCHITECTURES = {"swin": "swin_tiny_patch4_window7_224", "swinv2": "swinv2_tiny_window8_256"}

# entries of timm's configuration that describe timm's pre-trained weights
ORIGIN = ("license", "tag", "url", "hf_hub_id", "origin_url", "paper_name", "paper_ids", "custom_load")


@dataclass(frozen=True)
class Card:
    """Metadata of the model card that the model does not contain."""

    repository: str
    license: str = ""
    dataset: str = ""


def write_folder(opened: ModelFile, folder: Path, card: Card) -> list[str]:
    """Writes the folder, reads it back and compares the logits with the model's.

    Returns: log lines. Raises: CheckpointError if the logits differ; OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    peer, why_not = _timm_model(opened)
    notes: dict[str, Any] = {
        **{name: opened.task.contents[name] for name in TUNED if name in opened.task.contents},
        "class_names": list(opened.class_names),
        "config": dump_config(opened.cfg),
        "preprocessing": opened.preprocessing.as_dict(),
    }
    if isinstance(opened.model, ContinuousBackbone):
        notes["pretrained_windows"] = opened.model.pretrained_windows()
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
    images = torch.randn(2, opened.channels, *opened.size)
    readers: dict[str, nn.Module] = {"this program": open_model(str(folder / WEIGHTS)).model}
    if (folder / "config.json").exists():
        readers["timm"] = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for name, model in readers.items():
        difference = _difference(model, opened.model, images)
        if not difference < TOLERANCE:
            raise CheckpointError(str(folder), f"logits differ by {difference:.2g} in {name}", "do not use it")
    return f"verified: same logits in {' and '.join(readers)}"


def _result(top1: float, dataset: str) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split="validation",
        metric_type="accuracy",
        metric_name="top-1 accuracy, %",
        metric_value=round(top1, 3),
    )


def model_card(opened: ModelFile, card: Card, in_timm: bool) -> str:
    """Returns README.md: hub metadata, accuracy, usage and training configuration."""
    model, size, classes = opened.model, "x".join(map(str, opened.size)), len(opened.class_names)
    own = opened.task.best
    top1 = opened.best if own is not None and own.metric == "top1" else None
    data = ModelCardData(
        model_name=card.repository,
        eval_results=None if top1 is None else [_result(top1, card.dataset or "custom")],
        license=card.license or None,
        library_name="timm" if in_timm else None,
        pipeline_tag="image-classification",
        tags=["image-classification", "swin", *(["timm"] if in_timm else [])],
        datasets=[card.dataset] if card.dataset else None,
    )
    judged = "" if top1 is None else f", top-1 accuracy {top1:.2f} % on its validation split"
    words = in_words(opened.class_names)
    listed = ", ".join(words[:SHOWN]) + (f", and {classes - SHOWN:,} more" if classes > SHOWN else "")
    use_timm = f'model = timm.create_model("hf-hub:{card.repository}", pretrained=True)\n'
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---\n",
            f"# {card.repository.rpartition('/')[2]}\n",
            f"{type(model).__name__}, {count_parameters(model) / 1e6:.1f} M parameters,"
            f" {count_flops(model, opened.size) / 1e9:.3g} GFLOPs at {size}, {classes:,} classes{judged}.\n",
            "## Use\n",
            *(["```python\nimport timm\n", f"{use_timm}```\n"] if in_timm else []),
            "With the program that trained it:\n\n```",
            f"python scripts/predict.py photo.jpg --model hf:{card.repository}",
            f"python main.py --cfg RECIPE --pretrained hf:{card.repository} --data-path FOLDER\n```\n",
            f"Images: {opened.task.describe()}.\n",
            f"## Classes\n\n{listed}.\n",
            f"## Training\n\n<details><summary>Configuration</summary>\n\n```yaml\n{dump_config(opened.cfg)}```\n",
            "</details>\n",
        ]
    )
