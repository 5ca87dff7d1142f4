"""Background checkpoint writing: training waits only for a copy of its state."""

import logging
import threading
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints.files import point_to, remove_old, save_checkpoint
from utils.errors import ResourceError
from utils.nested import map_tensors

log = logging.getLogger(__name__)


class Saver:
    """Writes one checkpoint at a time, in a thread.

    Args: folder: checkpoint folder within the output folder; keep: number of newest checkpoints to keep, 0 for all.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, name: str, contents: dict[str, Any], best: bool = False) -> None:
        """Starts saving a copy of `contents` once the previous checkpoint is written.

        Args: best: whether best.pth should point to it. Raises: ResourceError if the previous save failed.
        """
        self.finish()
        work = (self.folder, name, snapshot(contents), best)
        self._thread = threading.Thread(target=self._write, args=work, name="saver")
        self._thread.start()

    def check(self) -> None:
        """Raises: ResourceError if the last save failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Waits until the last save has ended. Raises: ResourceError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def finish_quietly(self) -> None:
        """Waits up to 10 s for the last save, when the process ends for another reason."""
        if self._thread is not None:
            self._thread.join(10)

    def _write(self, folder: Path, name: str, contents: dict[str, Any], best: bool) -> None:
        try:
            if not folder.parent.is_dir():  # writing would create it again
                raise ResourceError(str(folder.parent), "was moved or removed during a save", "move it back")
            path = save_checkpoint(folder, name, contents)
            point_to(folder / "last.pth", path)
            if best:
                point_to(folder / "best.pth", path)
            remove_old(folder, self._keep)
            log.info("saved %s%s", path.name, " (best so far)" if best else "")
        except Exception as e:  # any error is raised in the main thread, by `check`
            self._error = e


def snapshot(value: Any) -> Any:
    """Copies nested dictionaries and lists, placing their tensors on the CPU."""
    return map_tensors(value, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu").copy_(t.detach()))
