"""Checkpoint files: written atomically, verified when read, found by number.

A checkpoint `ckpt_epoch_12.pth` (after epoch 12) or `ckpt_epoch_12_step_500.pth` (partway through it) is accompanied by
a checksum in the format of `sha256sum`. docs/architecture.md lists its contents.
"""

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints.rank_files import find_rank_files, read_rank_files
from utils.checkpoints.safe_load import load_tensors
from utils.errors import CheckpointError, ResourceError
from utils.files import atomic_path, remove_temporaries, sha256_of, write_text

log = logging.getLogger(__name__)

_NAME = re.compile(r"ckpt_epoch_(\d+)(?:_step_(\d+))?\.pth")


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Returns the file name of the checkpoint after `epoch`, or after `step` updates within it."""
    return f"ckpt_epoch_{epoch}.pth" if step is None else f"ckpt_epoch_{epoch}_step_{step}.pth"


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints in `folder`, newest first: by number, never by file time."""
    found = [path for path in folder.glob("ckpt_epoch_*.pth") if _NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_position, reverse=True)


def checkpoint_position(path: Path | None) -> tuple[float, float]:
    """Returns the sort key of a checkpoint: (epoch, updates within it); None comes first."""
    match = _NAME.fullmatch(path.name) if path else None
    return (int(match[1]), int(match[2]) if match[2] else float("inf")) if match else (-1, 0)


def save_checkpoint(folder: Path, name: str, contents: dict[str, Any]) -> Path:
    """Writes a checkpoint and its checksum; the checksum is in place before the checkpoint gets its name.

    While a file of that name is replaced, the checksum file briefly lists both.
    Raises: ResourceError if the disk is full or not writable; an earlier file of that name is untouched.
    """
    target, checksum = folder / name, _checksum_path(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            with open(temporary, "wb") as file:
                torch.save(contents, file)
            line = f"{sha256_of(temporary)}  {name}\n"
            replaced = _text_of(checksum) if target.exists() and checksum.exists() else ""
            write_text(checksum, line + replaced)
        if replaced:
            write_text(checksum, line)
    except (OSError, RuntimeError) as e:  # torch wraps disk errors
        with suppress(OSError):  # on a read-only disk this fails too
            if not target.exists():
                checksum.unlink(missing_ok=True)
        problem = f"the checkpoint cannot be saved: {_reason(e)}; {free_mib(folder):,.0f} MiB are free"
        remedy = "free disk space or set OUTPUT; earlier checkpoints are intact"
        raise ResourceError(str(target), problem, remedy) from e
    return target


def _reason(error: BaseException) -> str:
    """Returns the operating system's message for an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


def free_mib(folder: Path) -> float:
    """Returns the free disk space in MiB of a folder, which need not exist."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        disk = os.statvfs(existing)
    except OSError:
        return 0.0
    return disk.f_bavail * disk.f_frsize / 2**20


def check_space(folder: Path, size: int, keep: int) -> None:
    """Checks that the disk has room for future checkpoints, including the best one and the one being written.

    Args: size: bytes of one checkpoint; keep: number of newest checkpoints kept, 0 for all.
    Raises: ResourceError.
    """
    needed = size / 2**20 * max(1, (keep or 1) + 2 - len(list_checkpoints(folder)))
    free = free_mib(folder)
    if free < needed:
        problem = f"the checkpoints need {needed:,.0f} MiB, {free:,.0f} MiB are free"
        remedy = "free disk space, set OUTPUT, or keep fewer by TRAIN.KEEP_CHECKPOINTS"
        raise ResourceError(str(folder), problem, remedy)


def point_to(link: Path, target: Path) -> None:
    """Atomically makes `link` (last.pth, best.pth) a relative link to `target` in the same folder.

    On a file system without links, a text file (last.txt, best.txt) contains the name instead. If that fails too, only
    warns: checkpoints are found by number.
    """
    text = link.with_suffix(".txt")
    try:
        with atomic_path(link) as temporary:
            temporary.symlink_to(target.name)
        text.unlink(missing_ok=True)
    except OSError:
        try:
            write_text(text, target.name + "\n")
            link.unlink(missing_ok=True)
        except OSError as e:
            log.warning("cannot point %s at %s (%s)", link, target.name, e.strerror)


def supports_links(folder: Path) -> bool:
    """Returns whether the file system of `folder` supports symbolic links."""
    probe = folder / ".link"
    try:
        probe.unlink(missing_ok=True)
        probe.symlink_to("nowhere")
        probe.unlink()
    except OSError:
        return False
    return True


def follow(path: Path) -> Path:
    """Resolves last.pth or best.pth, a link or a text file; returns other paths unchanged."""
    if path.name not in ("last.pth", "best.pth") or not os.path.isfile(text := path.with_suffix(".txt")):
        return path
    if path.is_symlink() and path.lstat().st_mtime_ns > text.stat().st_mtime_ns:
        return path  # the text file predates the link
    name = text.read_text(encoding="utf-8", errors="replace").strip()
    return path.with_name(name) if _NAME.fullmatch(name) else path


def remove_old(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep` (0: all) and the targets of best.pth and last.pth."""
    kept = {follow(folder / link).resolve() for link in ("best.pth", "last.pth")}
    for path in list_checkpoints(folder)[keep:] if keep else []:
        if path.resolve() in kept:
            continue
        try:
            path.unlink(missing_ok=True)
            _checksum_path(path).unlink(missing_ok=True)
        except OSError as e:
            log.warning("cannot remove an old checkpoint (%s): %s", e.strerror, path)


def remove_leftovers(folder: Path) -> None:
    """Removes the remains of an interrupted save: temporary files, and checksums without a checkpoint."""
    remove_temporaries(folder)
    for path in folder.glob("*.tmp"):  # written by earlier versions
        path.unlink()
    for path in folder.glob("ckpt_epoch_*.sha256"):
        if not path.with_suffix("").exists():
            path.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint or weights file, or a set of one file per rank, to the CPU; nothing in it is executed.

    The checksum is verified if there is one.
    Raises: CheckpointError for a missing, corrupt or unsafe file.
    """
    try:
        path = follow(path)
        parts = find_rank_files(path)
        checksum = _checksum_path(path)
        if parts is None and checksum.is_file() and sha256_of(path) not in _text_of(checksum).split()[::2]:
            raise CheckpointError(str(path), "the file is corrupt: its checksum differs", "use another checkpoint")
    except (OSError, ValueError) as e:  # also for names that no file can have, such as with a null byte
        reason = getattr(e, "strerror", None) or e
        raise CheckpointError(str(path), f"cannot be read: {reason}", "choose another file") from e
    return load_tensors(path) if parts is None else read_rank_files(parts)


def find_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest intact checkpoint of a run and its contents, None if the run has none.

    Raises: CheckpointError if there are checkpoints but none is intact: starting over would overwrite them.
    """
    found = list_checkpoints(folder)
    for path in found:
        try:
            if not _checksum_path(path).is_file():
                raise CheckpointError(str(path), "has no checksum", "use another checkpoint")
            return path, read_checkpoint(path)
        except CheckpointError as e:
            log.warning("not resuming from %s: %s", path.name, e.problem)
    if found:
        problem = f"none of {len(found)} checkpoints is intact"
        raise CheckpointError(str(folder), problem, "restore one, or set a different --tag")
    return None


def _text_of(checksum: Path) -> str:
    return checksum.read_text(encoding="utf-8", errors="replace")  # a corrupt checksum must differ, not raise


def _checksum_path(path: Path) -> Path:
    resolved = path.resolve()  # last.pth and best.pth share their target's
    return resolved.with_name(resolved.name + ".sha256")
