"""Reports of updates skipped because of a non-finite gradient, one file each, in incidents/ of the output folder."""

import json
import logging
from pathlib import Path
from typing import Any

from utils.distributed.world import World
from utils.files import write_text

log = logging.getLogger(__name__)
MOST = 100  # reports per run; float16 skips some updates by design


def write_incident(path: Path, world: World, details: dict[str, Any], own: dict[str, Any]) -> None:
    """Writes a report; only warns if it fails. A collective operation.

    Args: details: details of the update, the same on all ranks; own: details of this rank.
    """
    ranks = world.gather_objects(own)
    if not world.is_main:
        return
    try:
        path.parent.mkdir(exist_ok=True)
        if sum(1 for _ in path.parent.iterdir()) < MOST:
            write_text(path, json.dumps({**details, "ranks": ranks}, indent=2) + "\n")
    except OSError as e:
        log.warning("cannot write a report (%s): %s", e.strerror, path)
