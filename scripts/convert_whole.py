"""Conversion of whole dense models, heads included, for scripts/convert_checkpoint.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models.weights.layouts import LAYOUTS, Layout, Weights
from models.weights.load import Found, find_parts, find_weights
from models.weights.parts import whole_from_original
from scripts.convert_checkpoint import write_weights
from scripts.other_libraries import build_upernet
from tasks.base import Task
from utils.checkpoints.files import read_checkpoint
from utils.errors import CheckpointError
from utils.files import writing
from utils.preprocessing import image_size

_NOTES = ("class_names", "category_ids", "class_colours", "label_values", "pretrained_windows")


def convert_whole(task: Task, contents: Mapping[str, Any], source: str, target: Path, layout_name: str) -> list[str]:
    """Converts a file of a task's whole model; returns log lines on reading, writing and verification.

    The file appears once it is read back bit for bit. Raises: CheckpointError, ResourceError.
    """
    if layout_name not in task.layouts:
        raise CheckpointError("--to", f"{layout_name} has no such model", f"choose one of {', '.join(task.layouts)}")
    layout = LAYOUTS[layout_name]
    model: Any = task.new_model(task.stored_info(source)).eval()  # a `HasEncoder`
    lines = [f"read: {task.load(model, contents, source)}"]  # strict
    weights = _weights(model, contents, source)
    stored = whole_from_original(weights | _buffers(model, layout), layout, model.encoder_name)
    stored = {name: value.clone() for name, value in stored.items()}
    notes = {name: contents[name] for name in _NOTES if contents.get(name)}
    notes["preprocessing"] = task.preprocessing.as_dict()
    with writing(target, "OUT", SafetensorError) as temporary:
        dropped = write_weights(stored, notes, temporary, layout.name)
        again = _weights(model, read_checkpoint(temporary), "the written file")
        same = weights.keys() == again.keys() and all(
            torch.equal(value, again[name]) and value.dtype == again[name].dtype for name, value in weights.items()
        )
        if not same:
            raise CheckpointError(source, "the written file differs when read back", "report this bug")
        compared = _compare(task, model, stored, layout)
    lines.append(f"written: {len(stored)} tensors in the layout of {layout.name}{dropped}: {target}")
    return [*lines, f"verified: bit-identical when read back; {compared}"]


def _weights(model: Any, contents: Mapping[str, Any], origin: str) -> Weights:
    """Returns all weights of a file under the authors' names, in their own dtype."""
    prefix = model.encoder_name
    found: Found = find_parts(model.encoder, find_weights(contents, origin, prefix), prefix)
    return {prefix + name: value for name, value in found.weights.items()} | found.others


def _buffers(model: nn.Module, layout: Layout) -> Weights:
    """Returns derived tensors that files of a layout store, V1's."""
    return {n: v for n, v in model.named_buffers() if n.endswith(layout.stores or ("-",)) and "coords" not in n}


@torch.no_grad()
def _compare(task: Task, model: nn.Module, stored: Mapping[str, Tensor], layout: Layout) -> str:
    """Compares logits with transformers', if it is installed and has the layout."""
    if layout.name != "transformers":
        return "outputs not compared"
    peer = build_upernet(model, {name: v.float() if v.is_floating_point() else v for name, v in stored.items()})
    if peer is None:
        return "outputs not compared, transformers is not installed, or has no such model"
    images = torch.randn(1, task.options.in_chans, *image_size(task.cfg.DATA.IMG_SIZE))
    difference = (peer(images) - model(images)).abs().max().item()
    if not difference < 1e-3:
        raise CheckpointError("--to", f"outputs differ by {difference:.2g} from transformers'", "report this bug")
    return f"outputs equal transformers' to {difference:.2g}"
