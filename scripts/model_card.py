"""The model card of a published model: results, usage, preprocessing and recipe, without paths of this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from configs.loading import flat_config, is_local
from configs.schema import KEYS
from scripts.open_model import ModelFile
from tasks.classification.class_names import in_words
from utils.cost import count_flops, count_parameters
from utils.errors import count

SHOWN = 100  # maximum classes listed in the card
# names of metrics on the hub, and in the card
METRICS = {
    "top1": ("accuracy", "top-1 accuracy"),
    "macro_f1": ("f1", "macro F1"),
    "map": ("map", "mAP"),
    "miou": ("mean_iou", "mIoU"),
    "box_ap": ("map", "box AP"),
    "mask_ap": ("map", "mask AP"),
}


@dataclass(frozen=True)
class Card:
    """Model card metadata that is not stored in the model."""

    repository: str
    license: str = ""
    dataset: str = ""


def model_card(opened: ModelFile, card: Card, library: str = "") -> str:
    """Returns README.md: hub metadata, results, usage, preprocessing and recipe.

    Args: opened: of a task with a card; library: another one that loads the published files.
    """
    text = opened.task.card(opened.info)
    assert text is not None
    classes, size = len(opened.class_names), "x".join(map(str, opened.size))
    scores = _scores(opened)
    results = [_result(text.tag, name, value, card.dataset or "custom") for name, value in scores.items()]
    data = ModelCardData(
        model_name=card.repository,
        eval_results=results or None,
        license=card.license or None,
        library_name=library or None,
        pipeline_tag=text.tag,
        tags=[text.tag, "swin", *([library] if library else [])],
        datasets=[card.dataset] if card.dataset else None,
    )
    words = [f"{METRICS.get(name, (name, name))[1]} {value:.2f}%" for name, value in scores.items()]
    judged = f" On its validation data: {', '.join(words)}." if words else ""
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {card.repository.rpartition('/')[2]}",
        f"{type(opened.model).__name__}, {count_parameters(opened.model) / 1e6:.1f} M parameters,"
        f" {count_flops(opened.model, opened.size) / 1e9:.3g} GFLOPs at {size},"
        f" {count(classes, 'class', 'classes')}.{judged}",
        "## Use",
        *([f"With {library}:\n\n{_fenced('python', EXAMPLES[library](opened, card))}"] if library else []),
        "With the program that trained it, from its folder:",
        *([_fenced("python", text.example.replace("{model}", f"hf:{card.repository}"))] if text.example else []),
        _fenced(
            "",
            f"python scripts/predict.py photo.jpg --model hf:{card.repository}\n"
            f"python main.py --cfg RECIPE --pretrained hf:{card.repository} --data-path FOLDER",
        ),
        "## Preprocessing\n\nImages are\n\n" + "\n".join(f"- {line}" for line in text.images),
        f"## Classes\n\n{_classes(opened)}",
        f"## Training\n\n{_training(opened)}",
    ]
    return "\n\n".join(sections) + "\n"


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _scores(opened: ModelFile) -> dict[str, float]:
    """Returns the validation metrics stored in the file, in percent."""
    own, contents = opened.task.best, opened.task.contents
    scores = {} if own is None or opened.best is None or own.metric == "loss" else {own.metric: opened.best}
    counts = contents.get("per_class")
    if counts and sum(counts["samples"]) and "thresholds" not in contents:
        scores["top1"] = 100 * sum(counts["correct"]) / sum(counts["samples"])
        f1 = [value for _, _, value in _per_class(counts) if value is not None]
        scores["macro_f1"] = sum(f1) / len(f1)
    return scores


def _per_class(counts: Mapping[str, list[int]]) -> list[tuple[float | None, float | None, float | None]]:
    """Returns recall, precision and F1 of each class in percent, None where undefined."""
    rows = zip(counts["samples"], counts["correct"], counts["predicted"], strict=True)
    return [
        (
            100 * correct / samples if samples else None,
            100 * correct / predicted if predicted else None,
            200 * correct / (samples + predicted) if samples + predicted else None,
        )
        for samples, correct, predicted in rows
    ]


def _result(tag: str, metric: str, value: float, dataset: str) -> EvalResult:
    kind, name = METRICS.get(metric, (metric, metric))
    return EvalResult(
        task_type=tag,
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split="validation",
        metric_type=kind,
        metric_name=f"{name}, %",
        metric_value=round(value, 3),
    )


def _timm_example(opened: ModelFile, card: Card) -> str:
    contents = opened.task.contents
    temperature = (contents.get("calibration") or {}).get("temperature", 1.0)
    scaled = f" / {temperature:.4g}" if temperature != 1.0 else ""
    probabilities = "sigmoid()" if "thresholds" in contents else "softmax(0)"
    upright = "ImageOps.exif_transpose(Image.open(PHOTO))" if opened.info.upright else "Image.open(PHOTO)"
    return f"""\
import timm
import torch
from PIL import Image{", ImageOps" if opened.info.upright else ""}

PHOTO = "photo.jpg"
model = timm.create_model("hf-hub:{card.repository}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = {upright}.convert("{"L" if opened.channels == 1 else "RGB"}")
with torch.no_grad():
    probabilities = (model(transform(image)[None])[0]{scaled}).{probabilities}
for probability, label in zip(*probabilities.topk({min(3, len(opened.class_names))})):
    print(model.pretrained_cfg["label_names"][label], f"{{probability:.1%}}")"""


def _transformers_example(opened: ModelFile, card: Card) -> str:
    mean, std = (
        ", ".join(f"{value:.4g}" for value in values)
        for values in (opened.preprocessing.mean, opened.preprocessing.std)
    )
    return f"""\
import numpy as np
import torch
from PIL import Image
from transformers import UperNetForSemanticSegmentation

model = UperNetForSemanticSegmentation.from_pretrained("{card.repository}").eval()
image = Image.open("photo.jpg").convert("RGB")  # resized as described below
pixels = (np.asarray(image) / 255 - [{mean}]) / [{std}]
with torch.no_grad():
    logits = model(torch.from_numpy(pixels).float().permute(2, 0, 1)[None]).logits
print(model.config.id2label[int(logits[0].argmax(0).mode().values[0])])"""


# of the libraries in scripts/hub_peers.py
EXAMPLES = {"timm": _timm_example, "transformers": _transformers_example}


def _classes(opened: ModelFile) -> str:
    """Returns a table of the classes with the stored image counts and scores, or a list if none are stored."""
    words, contents = in_words(opened.class_names), opened.task.contents
    columns: dict[str, list[Any]] = {"class": [word.replace("|", "\\|") for word in words]}
    if len(contents.get("data_counts", ())) == len(words):
        columns["training images"] = contents["data_counts"]
    counts = contents.get("per_class")
    if counts and len(counts["samples"]) == len(words):
        columns["validation images"] = counts["samples"]
        scores = zip(*_per_class(counts), strict=True)
        texts = [["" if value is None else f"{value:.1f}" for value in column] for column in scores]
        columns |= dict(zip(("recall, %", "precision, %", "F1, %"), texts, strict=True))
    more = f"\n\nand {len(words) - SHOWN:,} more" if len(words) > SHOWN else ""
    if len(columns) == 1:
        return ", ".join(words[:SHOWN]) + more
    rows = [columns, ["---", *["---:"] * (len(columns) - 1)], *list(zip(*columns.values(), strict=True))[:SHOWN]]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + more


def _training(opened: ModelFile) -> str:
    contents = opened.task.contents
    images = contents.get("data_counts") or ()
    facts = [f"{sum(images):,} images"] if images and "thresholds" not in contents else []
    facts += (
        [f"{contents['global_batch']}{'' if facts else ' images'} per update"] if contents.get("global_batch") else []
    )
    facts += [", ".join(f"{name} {version}" for name, version in opened.versions.items())] if opened.versions else []
    told = f"Trained on {'; '.join(facts)}.\n\n" if facts else ""
    changed = yaml.safe_dump(recipe(opened), sort_keys=False, allow_unicode=True)
    return f"{told}Keys of the recipe that differ from their defaults:\n\n{_fenced('yaml', changed)}"


def recipe(opened: ModelFile) -> dict[str, Any]:
    """Returns the keys that affect the result and differ from their defaults, nested, without paths."""
    nested: dict[str, Any] = {}
    for name, value in flat_config(opened.cfg).items():
        key = KEYS[name]
        if key.free or is_local(name, value) or name == "TAG" or value == key.default:
            continue
        *groups, leaf = name.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return nested
