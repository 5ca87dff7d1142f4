"""The fork server collects garbage again once it has imported the program, but skips the modules."""

import gc

import pytest

from data.pipeline.fork_server import worker_pool


def state():
    return gc.isenabled(), gc.get_freeze_count()


@pytest.mark.seconds
def test_workers_collect_garbage_but_skip_the_modules():
    with worker_pool(1) as pool:
        enabled, frozen = pool.submit(state).result()
    assert enabled and frozen > 10_000
