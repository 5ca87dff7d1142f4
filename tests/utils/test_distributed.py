"""One rank alone, and two that meet over gloo."""

import json
import subprocess

import pytest
import torch
import torch.distributed as dist

from tests.conftest import ROOT, command, environment
from utils.distributed import Watchdog, World, join_world


def test_a_single_process_needs_nobody():
    world = World()
    values = torch.arange(3.0, requires_grad=True)
    gathered = world.gather(values)
    assert gathered.tolist() == [[0.0, 1.0, 2.0]] and gathered.dtype == torch.float64 and not gathered.requires_grad
    assert world.broadcast({"a": 1}) == {"a": 1} and world.is_main
    with world.local_main_first():
        world.barrier()
    assert world.count_distinct("bad images", "x") == 0  # the caller counts
    assert world.end_together(3) == 3
    world.leave()


def test_before_the_ranks_have_met_the_main_rank_speaks():
    assert [World(rank).claim("error") for rank in (0, 1)] == [True, False]


def test_a_topic_is_claimed_once_and_an_item_counted_once():
    store = dist.HashStore()
    ranks = [World(rank, 2, store=store) for rank in (0, 1)]
    assert [world.claim("error") for world in reversed(ranks)] == [True, False]
    assert ranks[0].claim("other")
    counts = [ranks[i].count_distinct("bad", item) for i, item in ((0, "x"), (1, "x"), (1, "y\udce9"), (0, "y\udce9"))]
    assert counts == [1, 1, 2, 2]


def test_all_ranks_end_with_the_code_of_the_first_failure():
    store = dist.HashStore()
    first, second = (World(rank, 2, store=store, watchdog=Watchdog(store, 1)) for rank in (0, 1))
    for world in (first, second):
        world.watchdog.start()
        world.watchdog.stop()
    assert first.end_together(4) == 4 and second.end_together(6) == 4


def test_without_a_launcher_there_is_one_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    world = join_world()
    assert (world.rank, world.size, world.store, world.watchdog) == (0, 1, None, None)


PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
from utils.distributed import join_world

world, folder = join_world(1), Path(sys.argv[1])
own = torch.tensor([world.rank, 10.0 + world.rank])
found = {
    "place": [world.rank, world.size, world.local_rank, world.local_size, world.is_main],
    "gathered": world.gather(own).tolist(),
    "dtype": str(world.gather(own).dtype),
    "broadcast": world.broadcast(f"from {world.rank}"),
    "claims": [world.claim("a"), world.claim("b")],
}
world.barrier()
for item in ("both", f"of {world.rank}"):
    world.count_distinct("bad", item)
world.barrier()
found["count"] = world.count_distinct("bad", "both")
with world.local_main_first():
    if world.is_main:
        time.sleep(0.2)
    with open(folder / "order", "a") as file:
        file.write(f"{world.rank}\\n")
world.barrier()
(folder / f"{world.rank}.json").write_text(json.dumps(found))
world.leave()
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A folder with what two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        command(folder, processes=2, program=folder / "program.py"),
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def found(two_ranks):
    return [json.loads((two_ranks / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_each_rank_knows_its_place(found):
    assert [rank["place"] for rank in found] == [[0, 2, 0, 2, True], [1, 2, 1, 2, False]]


def test_values_are_gathered_in_the_order_of_the_ranks(found):
    for rank in found:
        assert rank["gathered"] == [[0.0, 10.0], [1.0, 11.0]] and rank["dtype"] == "torch.float64"


def test_the_main_ranks_value_is_broadcast(found):
    assert [rank["broadcast"] for rank in found] == ["from 0", "from 0"]


def test_each_topic_is_claimed_by_one_rank(found):
    for claims in zip(*(rank["claims"] for rank in found), strict=True):
        assert sorted(claims) == [False, True]


def test_an_item_of_both_ranks_counts_once(found):
    assert [rank["count"] for rank in found] == [3, 3]  # the common one, and one of each


def test_the_first_rank_of_a_machine_goes_first(two_ranks):
    assert (two_ranks / "order").read_text().split() == ["0", "1"]
