"""Folder of a model for the Hugging Face hub: weights, another library's config.json, and the model card."""

import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from yacs.config import CfgNode

from configs.loading import dump_config, flat_config, is_local
from configs.schema import KEYS
from scripts.hub_peers import TOLERANCE, Peer, difference, find_peer
from scripts.model_card import Card, model_card
from scripts.open_model import ModelFile, open_model
from utils.checkpoints.contents import CLASSES, JUDGED, TUNED
from utils.checkpoints.safe_load import NOTES
from utils.errors import CheckpointError
from utils.files import write_text

WEIGHTS = "model.safetensors"


def write_folder(opened: ModelFile, folder: Path, card: Card) -> list[str]:
    """Writes the folder, reads it back and compares the weights, and the logits in another library, with the model's.

    Returns: log lines. Raises: CheckpointError if they differ; OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    peer, why_not = find_peer(opened)
    notes: dict[str, Any] = {
        **{name: opened.task.contents[name] for name in (*TUNED, *JUDGED) if name in opened.task.contents},
        **{name: value for name, value in opened.info.as_dict().items() if name in CLASSES},
        "config": _published(opened.cfg),
        "preprocessing": opened.preprocessing.as_dict(),
    }
    windows: list[int] = getattr(opened.model, "pretrained_windows", list)()
    if windows:
        notes["pretrained_windows"] = windows
    weights = opened.model.state_dict() if peer is None else peer.weights
    tensors = {name: value.clone().contiguous() for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", NOTES: json.dumps(notes)})
    (folder / "config.json").unlink(missing_ok=True)
    if peer is not None:
        peer.write(folder)
    write_text(folder / "README.md", model_card(opened, card, "" if peer is None else peer.library))
    written = f"written: {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}"
    return [written, *([why_not] if peer is None else []), _verify(opened, folder, peer)]


def _published(cfg: CfgNode) -> str:
    """Returns a configuration as YAML text, with the defaults of keys that name files or describe a machine."""
    own = cfg.clone()
    own.defrost()
    for name, value in flat_config(cfg).items():
        if is_local(name, value):
            *groups, leaf = name.split(".")
            reduce(getitem, groups, own)[leaf] = KEYS[name].default
    return dump_config(own)


def _verify(opened: ModelFile, folder: Path, peer: Peer | None) -> str:
    """Reads the folder as its users will. Raises: CheckpointError."""
    read, own = open_model(str(folder / WEIGHTS)).model.state_dict(), opened.model.state_dict()
    if read.keys() != own.keys() or not all(torch.equal(value, read[name]) for name, value in own.items()):
        raise CheckpointError(str(folder), "the weights differ when read back", "do not use it")
    if peer is None:
        return "verified: same weights in this program"
    apart = difference(peer.read(folder), opened.model, torch.randn(2, opened.channels, *opened.size))
    if not apart < TOLERANCE:
        raise CheckpointError(str(folder), f"logits differ by {apart:.2g} in {peer.library}", "do not use it")
    return f"verified: same weights in this program, same logits in {peer.library}"
