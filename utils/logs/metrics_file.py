"""Metrics of a run, written to metrics.jsonl and the trackers."""

import json
import math
import os
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.errors import ResourceError
from utils.files import flush_to_disk, write_text
from utils.logs.trackers import Trackers
from utils.pictures import Pictures

# fields of the records; the objective defines "loss"
RESERVED = {"kind", "epoch", "step", "update", "samples", "lr", "grad_norm", "skipped", "train_loss"}
_FIELD_TYPES = (int, float, type(None))
ATTEMPTS, PAUSE = 4, 1.0  # to write a line; seconds between them, increasing linearly


def finite(value: float) -> float | None:
    """Returns the value, or None if JSON cannot represent it."""
    return value if math.isfinite(value) else None


class MetricsFile:
    """metrics.jsonl and the trackers of a run; `folder` is None on ranks that do not write.

    metrics.jsonl contains reproducible values only, so that an interrupted run ends with the same bytes as an
    uninterrupted one; speeds go to the trackers and the log.
    """

    def __init__(self, folder: Path | None, update: int, wandb: str = "", evaluated: bool = True):
        """Continues after `update`; removes later records of an interrupted run.

        Args: wandb: a project of Weights & Biases, "" for none; evaluated: whether the evaluation after `update` is
        part of the state to resume from.
        """
        self._folder = folder
        if folder is None:
            return
        self.metrics = folder / "metrics.jsonl"
        kept = [line for line in _lines(self.metrics) if _position(line) <= (update, evaluated)]
        write_text(self.metrics, "".join(line + "\n" for line in kept))
        self._trackers = Trackers(folder, update, wandb)

    def write(self, record: dict[str, Any], scalars: dict[str, float]) -> None:
        """Appends `record`, which contains `update`, as one line, and sends `scalars` to the trackers at that update.

        Raises: ResourceError if metrics.jsonl cannot be written; a tracker that fails is disabled with a warning.
        """
        if self._folder is None:
            return
        self._append(json.dumps(record, allow_nan=False) + "\n")
        self._trackers.write(scalars, record["update"])

    def show(self, pictures: Pictures, update: int) -> None:
        """Sends pictures to the trackers; they are drawn only on the rank that writes."""
        if self._folder is not None:
            self._trackers.show(pictures, update)

    def flush(self) -> None:
        """Syncs metrics.jsonl to disk: it must survive a power failure if a checkpoint does. Raises: ResourceError."""
        if self._folder is None or not self.metrics.exists():
            return
        try:
            flush_to_disk(self.metrics)
        except OSError as e:
            raise self._unwritable(e) from e

    def time(self, update: int, seconds: float, samples: int) -> None:
        """Appends the training time before the evaluation after `update` to times.jsonl, which nothing depends on."""
        if self._folder is None:
            return
        record = {
            "update": update,
            "seconds": round(seconds, 3),
            "images_per_s": round(samples / max(seconds, 1e-9), 2),
        }
        with suppress(OSError), open(times_of(self.metrics), "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def finish(self, settings: Mapping[str, Any], changed: Collection[str], metrics: Mapping[str, float]) -> None:
        """Sends the configuration and the best metrics of a finished run to the trackers.

        Args: changed: the keys that differ from their defaults.
        """
        if self._folder is not None:
            self._trackers.finish(settings, changed, metrics)

    def close(self) -> None:
        """Closes the trackers."""
        if self._folder is not None:
            self._trackers.close()

    def _append(self, line: str) -> None:
        for attempt in range(ATTEMPTS):
            try:
                size = self.metrics.stat().st_size if self.metrics.exists() else 0
                try:
                    with open(self.metrics, "a", encoding="utf-8") as file:
                        file.write(line)
                    return
                except OSError:
                    os.truncate(self.metrics, size)  # a partial line
                    raise
            except OSError as e:
                error = e
                time.sleep(PAUSE * attempt)
        raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ResourceError:
        remedy = "free disk space or set OUTPUT, then run the same command again to resume"
        return ResourceError(str(self.metrics), f"cannot be written: {error.strerror}", remedy)


def refuse_reserved(names: Iterable[str]) -> None:
    """Raises: ValueError if a loss component or a metric has a name in `RESERVED`."""
    taken = RESERVED.intersection(names)
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))}: names of fields of metrics.jsonl, choose others")


def times_of(metrics: Path) -> Path:
    """Returns the file of training times beside metrics.jsonl."""
    return metrics.with_name("times.jsonl")


def read_times(metrics: Path) -> dict[int, dict[str, float]]:
    """Returns the training times of a run by the update of their evaluation, the last ones if it was repeated."""
    records = map(_record, _lines(times_of(metrics)))
    return {line["update"]: line for line in records if line is not None and line.keys() >= {"seconds", "images_per_s"}}


def read_records(metrics: Path) -> list[dict[str, Any]]:
    """Returns the records of metrics.jsonl; corrupt lines are dropped. Raises: OSError."""
    return [record for line in _lines(metrics, required=True) if (record := _record(line)) is not None]


def _lines(metrics: Path, required: bool = False) -> list[str]:
    if not required and not metrics.exists():
        return []
    return metrics.read_text(encoding="utf-8", errors="replace").split("\n")


def _record(line: str) -> dict[str, Any] | None:
    """Parses a line; None if it is corrupt. Every field is a number or null, except for `kind`."""
    try:
        record = json.loads(line)
        numbers = [value for name, value in record.items() if name != "kind"]
        counts = [record.get("epoch", 0), record["update"]]
    except Exception:  # truncated, changed, nested too deeply
        return None
    valid = all(type(each) is int for each in counts) and all(type(each) in _FIELD_TYPES for each in numbers)
    return record if valid and record.get("kind", "train") in ("train", "val", "epoch") else None


def _position(line: str) -> tuple[float, bool]:
    """Returns the update of a line, and whether it follows that update, like evaluations; corrupt lines sort last."""
    record = _record(line)
    return (float("inf"), True) if record is None else (record["update"], record.get("kind") in ("val", "epoch"))
