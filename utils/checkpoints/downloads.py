"""Atomic downloads of weights from URLs, released models and Hugging Face repositories."""

import errno
import hashlib
import logging
import os
import re
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from utils.checkpoints.files import follow, list_checkpoints, read_checkpoint
from utils.checkpoints.released import released_url
from utils.checkpoints.safe_load import load_tensors
from utils.errors import CheckpointError, ResourceError, did_you_mean, listing
from utils.files import atomic_path, quoted, sha256_of
from utils.terminal import track

log = logging.getLogger(__name__)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.EPERM, errno.EFBIG)
MEBIBYTE = 1 << 20
MAX_DOWNLOAD = 1 << 36  # bytes; a server may send data endlessly
SILENCE = 60.0  # seconds to wait for a server


def local_file(name: str, sha256: str = "", newest: bool = False) -> Path:
    """Returns the local path of `name`, downloading it if necessary. Called on the main rank (see broadcast.py).

    Args: name: a path, the folder of a run, an http(s) URL, "hub:<released model>", "hf:<repository>[/file]" or
    "timm:<pretrained model>"; sha256: expected digest of the file, "" if unknown (the digest is then logged); newest: a
    run's folder means its newest checkpoint, to resume from, instead of its best one.
    Raises: CheckpointError for an unreachable, truncated or modified file.
    """
    kind, _, rest = name.partition(":")
    remote = kind in ("http", "https", "hub", "hf", "timm")
    if kind in ("hf", "timm"):
        path = _from_hugging_face(rest) if kind == "hf" else _from_timm(rest, sha256)
    elif remote:
        path = _download(released_url(rest) if kind == "hub" else name, sha256)
    else:
        path = newest_in(Path(name)) if newest else Path(best_in(name))
        if os.path.isdir(path):
            raise _not_a_run(path)
    if sha256:
        _verify(path, sha256)
    elif remote:
        log.info("sha256 of %s: %s (not verified: --sha256 was not given)", path, sha256_of(path))
    return path


def newest_in(path: Path) -> Path:
    """Returns the last checkpoint in the folder of a run; other paths unchanged."""
    for folder in (path / "checkpoints", path):
        newest = next(iter(list_checkpoints(folder)), None) if os.path.isdir(path) else None
        if newest is not None:
            return newest
    return path


def best_in(name: str) -> str:
    """Returns the best checkpoint of a run, else the last one, if `name` is its folder; other names unchanged."""
    path = Path(name)
    found = (follow(folder / "best.pth") for folder in (path / "checkpoints", path) if os.path.isdir(path))
    best = next((each for each in found if os.path.exists(each)), None)
    return str(best or newest_in(path)) if os.path.isdir(path) else name


def _not_a_run(folder: Path) -> CheckpointError:
    runs = sorted({found.parent for depth in ("*", "*/*") for found in folder.glob(f"{depth}/checkpoints")})
    remedy = f"name one of its runs: {listing(map(str, runs))}" if runs else "name output/<MODEL.NAME>/<TAG>, or a file"
    return CheckpointError(str(folder), "this folder is not a run, it contains no checkpoints", remedy)


def read_weights(name: str, sha256: str = "") -> dict[str, Any]:
    """Reads the file located by `local_file`. Raises: CheckpointError."""
    return read_checkpoint(local_file(name, sha256))


def _verify(path: Path, sha256: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as e:
        raise CheckpointError(str(path), f"cannot be read: {e.strerror}", "choose another file") from e
    if found != sha256.lower():
        raise CheckpointError(str(path), f"the SHA-256 is {found}, not {sha256}", "download it again")


def _download(url: str, sha256: str) -> Path:
    """Downloads into torch's hub cache; the file name contains a digest of the URL.

    A file enters the cache only if it opens; one that does not, left by an earlier version, is downloaded again.
    """
    try:
        base = Path(unquote(urlsplit(url).path)).name or "weights.pth"
    except ValueError as e:
        raise CheckpointError(url, f"not a valid URL ({e})", "correct it") from e
    digest = hashlib.sha256(url.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    stem, suffix = (re.sub(r"[^\w.-]", "_", part) for part in (Path(base).stem[:100], Path(base).suffix[:20]))
    target = Path(torch.hub.get_dir(), "checkpoints", f"{stem}-{digest}{suffix}")
    try:
        if target.is_file() and (sha256_of(target) == sha256.lower() if sha256 else _looks_whole(target)):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            _fetch(url, temporary, target)
            if sha256:
                _verify(temporary, sha256)
            else:
                _check_opens(temporary, url)
    except OSError as e:
        problem = f"the cache of downloaded weights cannot be used: {e.strerror}"
        raise ResourceError(str(target.parent), problem, "set TORCH_HOME to another folder") from e
    return target


def _looks_whole(path: Path) -> bool:
    """Returns whether a file looks complete, without reading it: torch's archives end with their table of contents."""
    with open(path, "rb") as file:
        head = file.read(16)
    return zipfile.is_zipfile(path) if head.startswith(b"PK") else bool(head) and not head.lstrip().startswith(b"<")


def _check_opens(path: Path, url: str) -> None:
    try:
        load_tensors(path)
    except CheckpointError as e:
        raise CheckpointError(url, f"the server did not send a checkpoint: {e.problem}", "check the URL") from e


def _fetch(url: str, target: Path, final: Path) -> None:
    """Downloads to `target`. Raises: CheckpointError for the network, OSError for the disk. Args: final: its name."""
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as response:
            size = int(response.headers.get("Content-Length") or 0)
            received = _copy(response, target, size)
    except Exception as e:  # a server can make the library raise anything
        if isinstance(e, OSError) and e.errno in DISK_ERRORS:
            raise
        reason = " ".join(str(getattr(e, "reason", e)).split()) or type(e).__name__
        remedy = f"check the URL, try again, or download the file elsewhere and save it as {quoted(final)}"
        raise CheckpointError(url, f"the weights cannot be downloaded ({reason})", remedy) from e
    if size and received != size:  # urllib does not detect truncated files
        raise CheckpointError(url, f"the download ended after {received:,} of {size:,} bytes", "try again")


def _copy(response: Any, target: Path, size: int) -> int:
    """Writes a response to a file and returns its bytes. Args: size: expected, 0 if unknown. Raises: OSError."""
    received, blocks = 0, iter(lambda: response.read(MEBIBYTE), b"")
    with open(target, "wb") as file:
        for block in track(blocks, "downloading", -(-size // MEBIBYTE), "MiB") if size else blocks:
            received += file.write(block)
            if received > MAX_DOWNLOAD:
                raise ValueError(f"more than {MAX_DOWNLOAD:,} bytes")
    return received


def _from_timm(name: str, sha256: str) -> Path:
    """Downloads the weights that timm has for a model, as `swin_tiny_patch4_window7_224` or with a tag, `.ms_in1k`."""
    import timm

    source, model = f"timm:{name}", name.partition(".")[0]
    if not timm.is_model(model):
        raise CheckpointError(source, "timm has no model of that name", did_you_mean(model, timm.list_models()))
    own = timm.get_pretrained_cfg(name) if name in timm.list_pretrained() or "." not in name else None
    if own is None or not (own.hf_hub_id or own.url):
        tags = [each for each in timm.list_pretrained() if each.startswith(f"{model}.")]
        raise CheckpointError(
            source, "timm has no weights of that name", did_you_mean(name, tags, "train from scratch")
        )
    try:
        file = f"/{own.hf_hub_filename}" if own.hf_hub_filename else ""
        return _from_hugging_face(f"{own.hf_hub_id}{file}") if own.hf_hub_id else _download(str(own.url), sha256)
    except CheckpointError as e:
        raise CheckpointError(source, f"{e.problem}: {e.subject}", e.remedy) from e


def is_reachable(url: str) -> bool:
    """Returns whether a server responds within five seconds, with any status."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except Exception as e:  # not a URL, no connection, no HTTP
        return isinstance(e, urllib.error.HTTPError)
    return True


def _from_hugging_face(name: str) -> Path:
    """Downloads `owner/repository/file`; without a file, tries the usual file names of weights."""
    source = f"hf:{name}"
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub import errors as hub
    except ImportError as e:
        raise CheckpointError(source, "the package huggingface_hub is missing", "pip install huggingface_hub") from e
    offline = not is_reachable(constants.ENDPOINT)  # the package would retry for half a minute
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if ".." in Path(file).parts:
        raise CheckpointError(source, "the file is outside of the repository", "name it by its path in it")
    for candidate in [file] if file else ["model.safetensors", "pytorch_model.bin"]:
        try:
            path = Path(hf_hub_download(f"{owner}/{repository}", candidate, local_files_only=offline))
            if not path.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):  # the server chooses the name
                raise ValueError("the server names a file outside of the cache")
            return path
        except hub.LocalEntryNotFoundError as e:
            remedy = "try again, or download the file elsewhere, with a browser or hf download, and name its path"
            raise CheckpointError(source, "Hugging Face cannot be reached", remedy) from e
        except hub.EntryNotFoundError:
            continue
        except Exception as e:  # a server can make the package raise anything
            problem = f"the weights cannot be downloaded ({type(e).__name__})"
            raise CheckpointError(source, problem, "check the name") from e
    raise CheckpointError(source, "the repository has no weights under a common name", "append /FILE to it")
