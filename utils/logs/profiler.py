"""Profiling of a few updates."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from utils.errors import count, one_line
from utils.terminal import log_lines, table_lines

log = logging.getLogger(__name__)
# updates: the first ones allocate and compile; one more warms up the profiler
SKIPPED, WARM_UP, RECORDED = 5, 1, 3
OPERATIONS = 10
FRAMES = ("ProfilerStep", "enumerate(", "Optimizer.", "## ")  # records around operations, not operations


class Profiler:
    """Profiles `RECORDED` updates of a run with torch's profiler, once.

    Writes trace.json, for chrome://tracing or ui.perfetto.dev, and logs the slowest operations.
    """

    def __init__(self, folder: Path, device: torch.device):
        self._path, self._device, self._left = folder / "trace.json", device, SKIPPED + WARM_UP + RECORDED
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's library writes lines for its authors to stderr
        plan = schedule(wait=SKIPPED, warmup=WARM_UP, active=RECORDED, repeat=1)
        self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._report)
        self._recorded = 0
        self._profiler.start()

    def step(self) -> None:
        """Must be called after every update."""
        if self._left:
            self._left -= 1
            self._recorded += self._left < RECORDED
            self._profiler.step()
            if not self._left:
                self.close()

    def close(self) -> None:
        """Ends the recording, early if necessary."""
        if self._profiler is not None:
            self._profiler.stop()
        self._profiler = None  # type: ignore[assignment]
        self._left = 0

    def _report(self, recorded: profile) -> None:
        try:
            recorded.export_chrome_trace(str(self._path))
        except (OSError, RuntimeError) as e:
            log.warning("cannot write %s (%s); training continues", self._path, one_line(e))
            return
        log.info("%s in %s; the slowest operations:", count(self._recorded, "update"), self._path)
        log_lines(self._table(recorded.key_averages()))

    def _table(self, averages: Iterable[Any]) -> list[str]:
        """Returns the lines of a table of the operations with the longest own time."""
        kind = "device" if self._device.type == "cuda" else "cpu"
        own = {each: getattr(each, f"self_{kind}_time_total") for each in averages if not each.key.startswith(FRAMES)}
        whole = sum(own.values()) or 1.0
        slowest = sorted(own, key=own.__getitem__, reverse=True)[:OPERATIONS]
        rows = [[e.key, e.count, own[e] / 1000, f"{own[e] / whole:.1%}"] for e in slowest]
        return table_lines(["operation", "calls", "self time, ms", "share"], rows)
