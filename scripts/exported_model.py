"""Exported models: ONNX and torch.export files with everything needed to predict."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.checkpoints.contents import parse_notes
from utils.errors import CheckpointError, ConfigError, one_line

NOTES = "swin"  # metadata entry with class names, preprocessing and configuration as JSON


class Exported(nn.Module):
    """Wraps a CPU function of images (B, C, H, W) and other tensors as a module.

    Args: batch: the fixed B, 0 for any.
    """

    def __init__(self, run: Any, batch: int):
        super().__init__()
        self._run, self._batch = run, batch

    def forward(self, images: Tensor, *others: Tensor) -> Any:
        """Returns the output, or all of them; batches of images alone are padded with zeros to the fixed size."""
        images = images.cpu()
        if not self._batch or len(images) == self._batch:
            return self._run(images, *others)
        missing = -len(images) % self._batch
        full = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        return torch.cat([self._run(part) for part in full.split(self._batch)])[: len(images)]


def open_exported(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Opens a .onnx or .pt2 file; returns its model and metadata. Raises: CheckpointError, ConfigError."""
    if not path.is_file():
        raise CheckpointError(str(path), "No such file", "name another file")
    model, text = _open_onnx(path) if path.suffix == ".onnx" else _open_pt2(path)
    notes = parse_notes(text, path)
    if not {"batch", "config"} <= notes.keys():
        raise CheckpointError(str(path), "was not written by scripts/export.py", "export the checkpoint with it")
    return Exported(model, notes["batch"]).eval(), notes


def _open_onnx(path: Path) -> tuple[Any, str]:
    try:
        import onnxruntime
    except ImportError as e:
        raise ConfigError(str(path), "ONNX models require onnxruntime", "pip install onnxruntime") from e
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    settings.intra_op_num_threads = torch.get_num_threads()
    try:
        providers = onnxruntime.get_available_providers()
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except Exception as e:  # onnxruntime's errors have no common base class
        raise CheckpointError(str(path), f"not an ONNX model ({one_line(e)[:100]})", "name another file") from e
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Any:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        outputs = [torch.from_numpy(each) for each in session.run(None, given)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run, session.get_modelmeta().custom_metadata_map.get(NOTES, "")


def _open_pt2(path: Path) -> tuple[Any, str]:
    import torchvision  # noqa: F401  whose operators detectors contain

    extra = {NOTES: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as e:  # undocumented for invalid files
        raise CheckpointError(str(path), f"not an exported program ({one_line(e)[:100]})", "name another file") from e
    module = program.module()
    return lambda *inputs: module(*inputs), extra[NOTES]  # always in evaluation mode
