"""Loads tensors from untrusted files without executing anything in them."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from utils.checkpoints.contents import checked, parse_notes
from utils.errors import CheckpointError

NOTES = "swin"  # metadata key in a .safetensors file; its value is JSON
_SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
# types that training programs store next to the weights. The configuration of the original repository, a pickled
# CfgNode, is read as a plain dict; timm stores its arguments as a namespace and its metrics as NumPy scalars
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (OrderedDict, "yacs.config.CfgNode"),
    argparse.Namespace,
    *(list, dict, set, int, float),  # factories of a defaultdict
    (lambda *_: {}, "collections.defaultdict"),
    (lambda *_: [], "collections.deque"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64")),
    *(type(np.dtype(kind)) for kind in ("uint16", "uint32", "uint64", "bool", "str")),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
]


# libraries whose objects may be stored next to weights; placeholders replace them
_LIBRARIES = (
    *("_codecs", "collections", "datetime", "lightning", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg"),
    *("numpy", "omegaconf", "pathlib", "pytorch_lightning", "timm", "torchvision", "uuid", "yacs"),
)


class _Placeholder:
    """Replaces an object of a library; accepts its state and discards it."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        pass


def load_tensors(path: Path) -> dict[str, Any]:
    """Loads a .pth (torch.save) or .safetensors file to the CPU; metadata of unexpected types is dropped.

    Raises: CheckpointError for a missing, corrupt or unsafe file, before memory is allocated for it.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        _check_size(path)
        contents = _unpickle(path)
    except pickle.UnpicklingError as e:
        raise _unsafe(path, e) from e
    except SafetensorError as e:
        raise CheckpointError(str(path), f"not a safetensors file ({e})", "choose another file") from e
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        reason = getattr(e, "strerror", None) or "it is truncated or not a checkpoint"
        raise CheckpointError(str(path), f"cannot be read: {reason}", "choose another file") from e
    if not isinstance(contents, dict):
        raise CheckpointError(str(path), f"not a checkpoint but a {type(contents).__name__}", "choose another file")
    contents = checked(contents, path)
    for name, tensor in _tensors(contents, ""):
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(str(path), f"{name} is not a dense tensor", "convert it to a dense one")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(str(path), f"{name} claims more values than its storage holds", "do not trust it")
    return contents


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Loads the tensors, and the metadata written by this program's converter."""
    with safe_open(path, framework="pt") as file:
        notes = parse_notes((file.metadata() or {}).get(NOTES, "{}"), path)
    return {**notes, **load_safetensors(path)}


def _unpickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files it did not write
            with torch.serialization.safe_globals(_placeholders(path)):
                return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError):
        raise
    except Exception as e:  # a corrupt pickle stream can raise anything
        raise ValueError(str(e)) from e


def _placeholders(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Returns placeholders for the classes and functions of harmless libraries that a file imports."""
    if not zipfile.is_zipfile(path):
        return []  # torch lists the imports of its current format only
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(_Placeholder, name) for name in names if name.split(".")[0] in _LIBRARIES]


def _check_size(path: Path) -> None:
    """Rejects compressed archives, which could be zip bombs: torch stores tensors uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        problem = f"the file expands to {unpacked:,} bytes, more than its size"
        raise CheckpointError(str(path), problem, "do not trust it")


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{i}")


def _unsafe(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    imported = re.search(r"GLOBAL ([\w.]+)", str(error))
    if imported is None:
        return CheckpointError(str(path), "not a checkpoint, or a corrupt one", "choose another file")
    problem = f"the file would import {imported[1]}, which weights never need"
    return CheckpointError(str(path), problem, "do not trust it")
