"""The waiting policy of OpenMP threads."""

import os


def wait_briefly() -> None:
    """Limits how long threads spin before they sleep, unless the user has set a limit.

    Call it before importing torch.

    Threads of GNU OpenMP spin for milliseconds. If other processes, such as loader workers, share the cores, a spinning
    thread blocks the one it waits for: a step of the quickstart model took 4 s instead of 0.1 s alongside one
    busy process, and takes 0.24 s with this setting. On idle cores, evaluation is 2 to 6% slower.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
