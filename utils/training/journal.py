"""What a run records for programs: metrics.jsonl and TensorBoard event files."""

import json
from pathlib import Path
from typing import Any

from utils.files import write_text


class Journal:
    """metrics.jsonl and TensorBoard of a run; on ranks that do not write, `folder` is None.

    metrics.jsonl contains only what is reproducible, so that an interrupted run ends with the same bytes as an
    uninterrupted one; speeds go to TensorBoard and the log.
    """

    def __init__(self, folder: Path | None, update: int):
        """Continues after `update`: what an interrupted run recorded beyond it is removed."""
        self._folder = folder
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import: on the writing rank only

        self.metrics = folder / "metrics.jsonl"
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        kept = [line for line in lines if _update_of(line) <= update]
        write_text(self.metrics, "".join(line + "\n" for line in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def write(self, record: dict[str, Any], scalars: dict[str, float]) -> None:
        """Appends `record`, which contains `update`, as one line, and `scalars` to TensorBoard at that update."""
        if self._folder is None:
            return
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(name, value, record["update"])

    def close(self) -> None:
        """Closes the event file."""
        if self._folder is not None:
            self._board.close()


def _update_of(line: str) -> float:
    """Returns the update of a metrics line; a line truncated by a kill counts as never written."""
    try:
        return json.loads(line)["update"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
