"""Weights from elsewhere: an address, a released model, a Hugging Face repository. They appear whole, or not at all."""

import hashlib
import logging
import os
import tempfile
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import torch
from tqdm import tqdm

from utils.distributed import World
from utils.errors import CheckpointError, ResourceError

log = logging.getLogger(__name__)
_CHUNK = 1 << 20


def local_file(name: str, world: World, *, address: Callable[[str], str], sha256: str = "") -> Path:
    """The file behind `name`, fetched once by the main process if it lies elsewhere.

    Args: name: a path, an http(s) address, "hub:<released model>" or "hf:<repository>[/file]"; address: of a released
    model; sha256: what the file must have, "" if it is not known (it is then logged).
    Raises: CheckpointError for an unreachable, truncated or altered file.
    """
    kind, _, rest = name.partition(":")
    remote = kind in ("http", "https", "hub", "hf")
    path = Path(name)
    if remote and world.is_main:
        web = address(rest) if kind == "hub" else name
        path = _from_hugging_face(rest) if kind == "hf" else _download(web, sha256)
    path = world.tell(path)
    if sha256 and world.is_main:
        _check(path, sha256)
    elif remote:
        log.info("sha256 of %s: %s (not checked: none was given with --sha256)", path, file_sha256(path))
    return path


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, sha256: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as e:
        raise CheckpointError(f"cannot read a checkpoint ({e.strerror}): {path}: name another file") from e
    if found != sha256.lower():
        raise CheckpointError(f"the file's sha256 is {found}, not {sha256}: {path}: fetch it again")


def _download(address: str, sha256: str) -> Path:
    """Fetch into torch's hub cache, under a name that tells two addresses apart."""
    try:
        base = Path(unquote(urlsplit(address).path)).name or "weights.pth"
    except ValueError as e:
        raise CheckpointError(f"no address ({e}): {address}: check it") from e
    mark = hashlib.sha256(address.encode()).hexdigest()[:8]
    target = Path(torch.hub.get_dir(), "checkpoints", f"{Path(base).stem}-{mark}{Path(base).suffix}")
    if target.is_file() and (not sha256 or file_sha256(target) == sha256.lower()):
        return target  # an altered one is fetched again
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix=target.name, suffix=".part", dir=target.parent)
    except OSError as e:
        raise ResourceError(f"cannot keep the weights ({e.strerror}): {target.parent}: set TORCH_HOME") from e
    try:
        with os.fdopen(handle, "wb") as file:
            _fetch(address, file)
            file.flush()
            os.fsync(file.fileno())
        if sha256:
            _check(Path(unfinished), sha256)
        os.replace(unfinished, target)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return target


def _fetch(address: str, file: BinaryIO) -> None:
    size = got = 0
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=address.rsplit("/", 1)[-1]) as bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    got += len(chunk)
                    bar.update(len(chunk))
    except (OSError, ValueError, HTTPException) as e:
        reason = getattr(e, "reason", e)
        raise CheckpointError(f"cannot fetch the weights ({reason}): {address}: check it, or try again later") from e
    if size and got != size:
        raise CheckpointError(f"the download ended after {got:,} of {size:,} bytes: {address}: try again")


def _from_hugging_face(name: str) -> Path:
    """`owner/repository`, or `owner/repository/file`; without a file, the usual names of weights are tried."""
    try:
        from huggingface_hub import errors as hub
        from huggingface_hub import hf_hub_download
    except ImportError as e:
        raise CheckpointError(f"hf: needs the package huggingface_hub: hf:{name}: pip install huggingface_hub") from e
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    for candidate in [file] if file else ["model.safetensors", "pytorch_model.bin"]:
        try:
            return Path(hf_hub_download(f"{owner}/{repository}", candidate))
        except hub.LocalEntryNotFoundError as e:
            raise CheckpointError(f"cannot reach Hugging Face: hf:{name}: try again, or fetch the file yourself") from e
        except hub.EntryNotFoundError:
            continue
        except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as e:
            raise CheckpointError(f"cannot fetch the weights ({type(e).__name__}): hf:{name}: check the name") from e
    raise CheckpointError(f"the repository holds no weights by a usual name: hf:{name}: add /file to it")
