"""Atomic writing of files, links and folders."""

import errno
import hashlib
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import ResourceError


def cache_folder(kind: str) -> Path:
    """Returns the folder of this program's cached `kind` of files, below XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swin" / kind


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path next to `target`, renamed to `target` when the block ends.

    The block may create a file, a symbolic link or a folder there. A file is flushed to disk before the rename and its
    folder after it, so that `target` survives a power failure. If the block or the rename fails, the temporary
    file is removed and `target` is untouched. The temporary file is hidden and keeps the suffix of `target`.

    Raises: OSError, also if `target` is a non-empty folder.
    """
    temporary = target.with_name(f".{short_stem(target)}.{secrets.token_hex(4)}.tmp{target.suffix[:20]}")
    try:
        yield temporary
        if temporary.is_file() and not temporary.is_symlink():
            flush_to_disk(temporary)
        os.replace(temporary, target)
        flush_to_disk(target.parent)
    except BaseException:  # including an interrupt
        with suppress(OSError):  # the first error is the one to report
            _remove(temporary)
        raise


@contextmanager
def writing(target: Path, option: str, *failures: type[Exception]) -> Iterator[Path]:
    """Yields a temporary path for `target` (see `atomic_path`); creates parent folders.

    Args: option: the option or key that names `target`; failures: raised by the writing library besides OSError.
    Raises: ResourceError.
    """
    with write_errors(target, option, *failures):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            yield temporary


@contextmanager
def write_errors(target: Path, option: str, *failures: type[Exception]) -> Iterator[None]:
    """Converts errors in writing `target` to ResourceError. Args: as for `writing`."""
    kinds: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except kinds as e:
        problem = f"cannot be written: {getattr(e, 'strerror', None) or e}"
        raise ResourceError(str(target), problem, f"choose another {option}") from e


def remove_temporaries(folder: Path) -> None:
    """Removes the temporary files that `atomic_path` leaves in `folder` when a process is killed."""
    for path in folder.glob(".*.tmp*"):
        _remove(path)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically. Raises: OSError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_stem(path: Path) -> str:
    """Returns the name without its suffix, cut to 200 bytes: names may have 255, and additions need room."""
    return os.fsdecode(os.fsencode(path.stem)[:200])


def quoted(path: Path | str) -> str:
    """Returns a path quoted for the shell, for use in printed commands."""
    return shlex.quote(str(path))


def flush_to_disk(path: Path) -> None:
    """Syncs a file, or the entries of a folder, to disk. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():  # some systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
