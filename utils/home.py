"""Gives libraries a home folder and a user name on systems that provide neither."""

import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def ensure_home(warn: bool = True) -> None:
    """If HOME is unset and the user is not in the user database, sets it to a folder in the temporary folder.

    This is common in containers that run as an arbitrary user. Libraries that look for their caches fail without a home
    folder; call this before importing them. Args: warn: whether to log a warning.
    """
    if os.path.expanduser("~") != "~":
        return
    folder = Path(tempfile.gettempdir(), f"home-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError
    except OSError:  # it belongs to another user
        folder = Path(tempfile.mkdtemp(prefix="home-"))
    os.environ["HOME"] = str(folder)
    os.environ.setdefault("USER", f"user-{os.getuid()}")
    if warn:
        log.warning("HOME is not set and the user has no home folder: caches are written to %s", folder)
