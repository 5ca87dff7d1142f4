"""Where the time of an update goes."""

import pytest

from scripts.benchmarks.stopwatch import Stopwatch


def test_every_moment_belongs_to_the_innermost_part(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 8.0, 10.0])
    monkeypatch.setattr("scripts.benchmarks.stopwatch.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()  # 0: step
    with watch.during("log"):  # 1
        watch.attributed("save", lambda: None)()  # 3 to 4
    # 8: step again
    assert watch.lap() == {"data": 0, "step": 1 + 2, "log": 2 + 4, "save": 1}


def test_a_part_that_fails_ends_too():
    watch = Stopwatch()

    def fail():
        raise StopIteration

    with pytest.raises(StopIteration):
        watch.attributed("data", fail)()
    watch.lap()
    assert watch.lap()["data"] == 0
