"""Checkpoint files: written whole or not at all, verified when read, found by number.

A checkpoint `ckpt_epoch_12.pth` (after epoch 12) or `ckpt_epoch_12_step_500.pth` (inside it) has a checksum beside it
in the format of `sha256sum`. docs/architecture.md says what it holds.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints.downloads import file_sha256
from utils.checkpoints.safe_load import load_tensors
from utils.errors import CheckpointError, ResourceError

log = logging.getLogger(__name__)

_NAME = re.compile(r"ckpt_epoch_(\d+)(?:_step_(\d+))?\.pth")
_TEMPORARY = ".tmp"


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """File name after `epoch`, or after `step` updates inside it."""
    return f"ckpt_epoch_{epoch}.pth" if step is None else f"ckpt_epoch_{epoch}_step_{step}.pth"


def list_checkpoints(folder: Path) -> list[Path]:
    """Our checkpoints in `folder`, newest first: by their numbers, never by file time."""

    def number(path: Path) -> tuple[float, float]:
        match = _NAME.fullmatch(path.name)
        assert match
        return int(match[1]), int(match[2]) if match[2] else float("inf")

    found = [path for path in folder.glob("ckpt_epoch_*.pth") if _NAME.fullmatch(path.name)]
    return sorted(found, key=number, reverse=True)


def save_checkpoint(folder: Path, name: str, contents: dict[str, Any]) -> Path:
    """Write a checkpoint and its checksum; the checksum stands before the checkpoint gets its name.

    Raises: ResourceError if the disk is full or cannot be written; what stood there before is untouched.
    """
    target = folder / name
    temporary = folder / (name + _TEMPORARY)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        write_whole(_checksum_path(target), f"{file_sha256(temporary)}  {name}\n")
        os.replace(temporary, target)
        _flush_folder(folder)
    except (OSError, RuntimeError) as e:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise ResourceError(f"cannot save a checkpoint ({reason}): {target}: free some space or set OUTPUT") from e
    return target


def point_to(link: Path, target: Path) -> None:
    """Make `link` (last.pth, best.pth) a relative link to `target` beside it, in one step. Raises: ResourceError."""
    temporary = link.with_name(link.name + _TEMPORARY)
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, link)
    except OSError as e:
        raise ResourceError(f"cannot make a link ({e.strerror}): {link}: set OUTPUT to a disk that has links") from e


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; what best.pth and last.pth point to stays. 0 keeps all."""
    kept = {(folder / link).resolve() for link in ("best.pth", "last.pth")}
    for path in list_checkpoints(folder)[keep:] if keep else []:
        if path.resolve() not in kept:
            path.unlink()
            _checksum_path(path).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted save left: unfinished files, and checksums of files that never got their name."""
    for path in folder.glob("*" + _TEMPORARY):
        path.unlink()
    for path in folder.glob("ckpt_epoch_*.sha256"):
        if not path.with_suffix("").exists():
            path.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Contents of a checkpoint or weights file, on the CPU; nothing in it is executed.

    A checksum beside the file is verified where there is one.
    Raises: CheckpointError for a missing, damaged or unsafe file.
    """
    checksum = _checksum_path(path)
    try:
        if checksum.is_file() and checksum.read_text().split()[:1] != [file_sha256(path)]:
            raise CheckpointError(f"the file is damaged (its checksum differs): {path}: use another checkpoint")
    except OSError as e:
        raise CheckpointError(f"cannot read a checkpoint ({e.strerror}): {path}: name another file") from e
    return load_tensors(path)


def find_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest good checkpoint of a run, None if it never saved one.

    Raises: CheckpointError if there are checkpoints but none is good: starting over would overwrite them.
    """
    found = list_checkpoints(folder)
    for path in found:
        try:
            if not _checksum_path(path).is_file():
                raise CheckpointError(f"it has no checksum: {path}")
            return path, read_checkpoint(path)
        except CheckpointError as e:
            log.warning("not resuming from %s: %s", path.name, e)
    if found:
        raise CheckpointError(f"no good checkpoint among {len(found)}: {folder}: restore one, or choose another --tag")
    return None


def write_whole(path: Path, text: str) -> None:
    """Replace a text file in one step, flushed to disk."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _checksum_path(path: Path) -> Path:
    resolved = path.resolve()  # last.pth and best.pth have their target's
    return resolved.with_name(resolved.name + ".sha256")


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
