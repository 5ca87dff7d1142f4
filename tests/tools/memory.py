"""The peak memory of a block of code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_bounded(mebibytes: float) -> Iterator[None]:
    """Fails if the block makes the resident memory of this process grow by more, if only for a moment."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of earlier tests
    before = _peak()
    yield
    grown = (_peak() - before) / 1024
    assert grown < mebibytes, f"{grown:.0f} MiB"


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
