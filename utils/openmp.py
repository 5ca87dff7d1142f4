"""How the threads of a matrix product wait for each other."""

import os


def wait_briefly() -> None:
    """Sets, unless the user has, how long threads spin before they sleep; to be called before torch is imported.

    Threads of GNU's OpenMP spin for milliseconds. Where other processes use the cores as well, loader workers among
    them, a thread that spins keeps the one it waits for from its core: a step of the quickstart's model took 4 s in
    place of 0.1 s beside one busy process, and takes 0.24 s with this setting. It costs 2 to 6 % of an evaluation on
    cores that have nothing else to do.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
