"""One rank alone, and two that meet over gloo: three times, through one store that outlives each attempt."""

import json
import socket

import pytest
import torch
import torch.distributed as dist

from tests.conftest import free_port, run_ranks
from tests.tools.builders import LostStore
from tests.tools.errors import raises
from utils.distributed import watchdog, world
from utils.distributed.watchdog import Watchdog
from utils.distributed.world import World, join_world
from utils.errors import ConfigError, DistributedError
from utils.rank import launched_rank


def test_a_single_process_needs_nobody(capsys):
    world = World()
    values = torch.arange(3.0, requires_grad=True)
    gathered = world.gather(values)
    assert gathered.tolist() == [[0.0, 1.0, 2.0]] and gathered.dtype == torch.float64 and not gathered.requires_grad
    assert world.broadcast({"a": 1}) == {"a": 1} and world.is_main
    assert world.gather_objects({"a": 1}) == [{"a": 1}] and world.main_only(lambda: 3) == 3
    world.broadcast_tensor(values)
    world.check_equal({"a": 1}, "no remedy")
    with world.local_main_first():
        world.tick("the only block")
    assert world.count_distinct("bad images", "x") == 0  # the caller counts
    assert world.end_together(ConfigError("TAG", "wrong"), debug=False) == 2
    assert capsys.readouterr().err == "error: TAG: wrong\n"
    world.leave()


def test_ranks_of_a_machine_take_turns_even_if_the_launcher_does_not_say_how_many_they_are():
    store = dist.HashStore()
    order = []
    for local_rank in (0, 1):  # the second would wait forever
        with World(local_rank, 2, local_rank=local_rank, store=store).local_main_first():
            order.append(local_rank)
    assert order == [0, 1]


def test_before_the_ranks_have_met_the_main_rank_speaks_unless_a_rank_has_no_gpu(capsys):
    error = ConfigError("TAG", "wrong")
    assert [World(rank).end_together(error, debug=False) for rank in (0, 1)] == [2, 2]
    assert capsys.readouterr().err == "error: TAG: wrong\n"
    assert World(1).end_together(DistributedError("rank 1", "no GPU"), debug=False) == 5
    assert capsys.readouterr().err == "error: rank 1: no GPU\n"


def test_an_item_is_counted_once():
    store = dist.HashStore()
    ranks = [World(rank, 2, store=store) for rank in (0, 1)]
    counts = [ranks[i].count_distinct("bad", item) for i, item in ((0, "x"), (1, "x"), (1, "y\udce9"), (0, "y\udce9"))]
    assert counts == [1, 1, 2, 2]


@pytest.fixture
def ranks(monkeypatch):
    """Two ranks in one process, with watchdogs that do not run."""
    for name, seconds in (("INTERVAL", 0.02), ("SILENCE", 0.1), ("PATIENCE", 0.05)):
        monkeypatch.setattr(watchdog, name, seconds)
    store = dist.HashStore()
    return [World(rank, 2, store=store, watchdog=Watchdog(store, rank, 2)) for rank in (0, 1)]


def test_all_ranks_end_with_the_code_and_the_line_of_the_first_failure(ranks, capsys):
    first, second = reversed(ranks)
    assert first.end_together(ConfigError("TAG", "wrong"), debug=False) == 2
    assert second.end_together(DistributedError("rank 1", "gone"), debug=False) == 2
    assert capsys.readouterr().err == "error: TAG: wrong\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:2"),
        RuntimeError("NCCL communicator was aborted"),
        dist.DistBackendError("watchdog timeout"),
    ],
)
def test_fault_26_a_lost_connection_names_the_rank_that_is_gone(ranks, capsys, error):
    ranks[0].tick("epoch 1, update 3")
    assert ranks[0].end_together(error, debug=False) == 5
    err = capsys.readouterr().err
    assert err.startswith("error: rank 1: ") and "at epoch 1, update 3" in err and "Traceback" not in err


def test_an_error_of_the_program_is_not_taken_for_a_lost_connection(ranks, capsys):
    assert ranks[0].end_together(RuntimeError("shapes differ"), debug=False) == 1
    assert capsys.readouterr().err.endswith("error: shapes differ\n")


def test_if_the_store_is_gone_every_rank_reports_and_ends(ranks, capsys):
    ranks[1].watchdog._store = LostStore()
    assert ranks[1].end_together(ConfigError("TAG", "wrong"), debug=False) == 2
    assert capsys.readouterr().err == "error: TAG: wrong\n"


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables of a launcher, those that are not given are unset."""

    def launch(**variables):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_without_a_launcher_there_is_one_rank(launched):
    launched()
    world = join_world()
    assert (world.rank, world.size, world.store, world.watchdog) == (0, 1, None, None)
    assert launched_rank() == 0


@pytest.mark.parametrize(
    ("variables", "place", "subject", "value"),
    [
        ({"WORLD_SIZE": 2}, (0, 2), "RANK", "WORLD_SIZE is 2"),
        ({"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost"}, (1, 2), "MASTER_PORT", 2),
        ({"WORLD_SIZE": "two"}, (0, 1), "WORLD_SIZE", "'two'"),
        ({"RANK": "x"}, (0, 1), "RANK", "'x'"),
        ({"RANK": 1}, (0, 1), "WORLD_SIZE", "RANK is 1"),
        ({"RANK": 2, "WORLD_SIZE": 2}, (0, 2), "WORLD_SIZE", "RANK is 2"),
    ],
)
def test_fault_64_variables_of_a_launcher_that_are_wrong_are_named(launched, variables, place, subject, value):
    launched(**variables)
    assert launched_rank() == place[0]
    with raises(DistributedError, subject, value, "torchrun"):
        join_world()


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_meet_say_so(launched, rank):
    launched(WORLD_SIZE=2, RANK=rank, LOCAL_RANK=rank, MASTER_ADDR="localhost", MASTER_PORT=free_port())
    with raises(DistributedError, "MASTER_ADDR", "2 ranks", "MASTER_PORT"):
        join_world(timeout_minutes=0.01)


def test_fault_61_the_store_of_a_launcher_that_is_gone_is_not_waited_for(launched, monkeypatch):
    port = free_port()
    launched(WORLD_SIZE=2, RANK=0, LOCAL_RANK=0, MASTER_ADDR="localhost", MASTER_PORT=port)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(world, "REACH", 0.1)
    with raises(DistributedError, "torchrun", f"localhost:{port}"):
        join_world()
    launched(WORLD_SIZE=2, RANK=1, LOCAL_RANK=1, MASTER_ADDR="localhost", MASTER_PORT=port)
    with pytest.raises(SystemExit) as silent:
        join_world()
    assert silent.value.code == 5


def test_fault_61_a_meeting_that_ends_with_the_launcher_is_the_launchers_fault(launched, monkeypatch):
    def rendezvous(*_, **__):
        raise dist.DistNetworkError("reset by peer")

    def wait():
        raise SystemExit("the thread that watches torchrun reports it")

    launched(WORLD_SIZE=2, RANK=0, LOCAL_RANK=0, MASTER_ADDR="localhost", MASTER_PORT=free_port())
    monkeypatch.setattr(dist, "rendezvous", rendezvous)
    monkeypatch.setattr(world, "wait_if_launcher_is_gone", wait)
    with pytest.raises(SystemExit):
        join_world()


def test_a_gpu_that_cannot_be_used_is_a_warning_or_if_it_was_wanted_an_error(launched, monkeypatch, caplog):
    launched(CUDA_VISIBLE_DEVICES="abc")
    assert join_world().device.type == "cpu"
    (warning,) = caplog.messages
    assert "CUDA_VISIBLE_DEVICES is 'abc'" in warning and "--device cpu" in warning
    caplog.clear()
    assert join_world(device_type="cpu").device.type == "cpu" and not caplog.messages
    with raises(DistributedError, "--device", "CUDA_VISIBLE_DEVICES is 'abc'", "cpu"):
        join_world(device_type="cuda")


def test_one_gpu_of_several_and_mps_are_for_a_single_process(launched, monkeypatch):
    launched()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert join_world(device_type="cuda:1").device == torch.device("cuda", 1) and chosen == [1]
    with raises(DistributedError, "--device", "no GPU 2", "0 to 1"):
        join_world(device_type="cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with raises(DistributedError, "--device", "MPS", "cpu"):
        join_world(device_type="mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert join_world(device_type="mps").device == torch.device("mps")
    launched(WORLD_SIZE=2, RANK=0, LOCAL_RANK=0, MASTER_ADDR="localhost", MASTER_PORT=1)
    for name, remedy in (("cuda:1", "use cuda"), ("mps", "without torchrun")):
        with raises(DistributedError, "--device", name, "2 ranks", remedy):
            join_world(device_type=name)


def test_more_ranks_than_gpus_are_refused(launched, monkeypatch):
    launched(WORLD_SIZE=2, RANK=1, LOCAL_RANK=1, MASTER_ADDR="localhost", MASTER_PORT=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with raises(DistributedError, "--nproc_per_node", "rank 1", "at most 1"):
        join_world()


def test_one_rank_of_a_machine_reports_a_missing_gpu(launched, monkeypatch):
    monkeypatch.setattr(world, "PATIENCE", 0.01)
    launched(WORLD_SIZE=4, RANK=2, LOCAL_RANK=2, MASTER_ADDR="localhost", MASTER_PORT=1)
    with pytest.raises(SystemExit, match="5"):
        join_world(device_type="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit, match="5"):
        join_world()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A folder with what two ranks found in the third attempt, the exit codes of all, and what they said."""
    folder = tmp_path_factory.mktemp("ranks")
    for rank in (0, 1):
        (folder / str(rank)).mkdir()
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": torch.ones(2, 2), "b": torch.zeros(3, dtype=torch.bfloat16), "view": whole[:, 1], "n": whole.long()}
    torch.save({"model": tensors, "rest": {"epoch": 3, "names": ["x", None, 0.5]}}, folder / "0" / "weights.pth")
    done = run_ranks("attempts", folder)
    return folder, json.loads(done.out), done.err


@pytest.fixture
def found(two_ranks):
    folder, codes, err = two_ranks
    assert codes[2] == [0, 0], err
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.seconds
def test_what_an_earlier_attempt_left_in_the_store_of_the_launcher_disturbs_nothing(two_ranks):
    _, codes, err = two_ranks
    assert codes == [[2, 2], [4, 4], [0, 0]], err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and errors[0] == "error: TAG: wrong", err
    assert errors[1].startswith("error: gone.pth: ") and "No such file or directory" in errors[1]


@pytest.mark.seconds
def test_each_rank_knows_its_place(found):
    assert [rank["place"] for rank in found] == [[0, 2, 0, 2, True], [1, 2, 1, 2, False]]


@pytest.mark.seconds
def test_values_are_gathered_in_the_order_of_the_ranks(found):
    for rank in found:
        assert rank["gathered"] == [[0.0, 10.0], [1.0, 11.0]] and rank["dtype"] == "torch.float64"
        assert rank["objects"] == [{"rank": 0}, {"rank": 1}]


@pytest.mark.seconds
def test_the_main_ranks_value_is_broadcast(found):
    assert [rank["broadcast"] for rank in found] == ["from 0", "from 0"]
    assert [(rank["main only"], rank["calls"]) for rank in found] == [("from 0", [0]), ("from 0", [])]


@pytest.mark.seconds
def test_tensors_of_any_type_and_layout_are_broadcast(found):
    assert found[0]["tensors"] == found[1]["tensors"]
    sent = found[1]["tensors"]
    assert sent["torch.bfloat16"] == [[1.0] * 3] * 2 and sent["torch.bool"] == [[True] * 3] * 2
    assert sent["transposed"] == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] and sent["scalar"] == 0.0
    assert sent["empty"] == [] and sent["parameter"] == [0.0, 0.0]


@pytest.mark.seconds
def test_what_differs_is_named_on_every_rank_with_the_rank_and_its_machine(found):
    host = socket.gethostname()
    for rank in found:
        assert rank["unequal"].startswith("TRAIN.BASE_LR: ")
        for part in (f"1.1 on rank 1 ({host}), 0.1 on rank 0 ({host})", "(use one command everywhere)"):
            assert part in rank["unequal"]


@pytest.mark.seconds
def test_a_file_that_only_the_main_rank_sees_is_read_by_all(found):
    assert found[0]["read"] == found[1]["read"]
    read = found[1]["read"]
    assert read["a"] == [[1.0, 1.0], [1.0, 1.0]] and read["view"] == [1.0, 5.0, 9.0]
    assert read["kinds"] == ["torch.float32", "torch.bfloat16", "torch.float32", "torch.int64"]
    assert read["rest"] == {"epoch": 3, "names": ["x", None, 0.5]}


@pytest.mark.seconds
def test_fault_33_a_weight_that_differs_is_named_on_every_rank(found):
    for rank in found:
        for key, update in (("weights", 5), ("zeros", 6)):
            assert rank[key].startswith("rank 1: ") and "same command again" in rank[key]
            assert f"rank 0 at epoch 0, update {update}" in rank[key] and "2.weight" in rank[key]


@pytest.mark.seconds
def test_running_statistics_become_those_of_the_main_rank(found):
    (own, *one), (theirs, *other) = (rank["buffers"] for rank in found)
    assert own != theirs and one[:2] == other[:2] and one[0] == own
    assert (one[2], other[2]) == (1, 2)  # counters are not statistics


@pytest.mark.seconds
def test_fault_59_one_image_per_rank_and_blocks_that_none_keeps_eager_and_compiled(found):
    for rank in found:
        assert rank["depth"]["ranks"] == 0.0 and 0.0 < rank["depth"]["largest"] < float("inf")
        assert rank["depth"]["eager and compiled"] < 1e-5 * rank["depth"]["largest"]


@pytest.mark.seconds
def test_an_evaluation_that_was_cut_short_on_one_rank_stops_all(found):
    assert [rank["stop"] for rank in found] == [[0, 15], [0, 15]]


@pytest.mark.seconds
def test_an_item_of_both_ranks_counts_once(found):
    assert [rank["count"] for rank in found] == [3, 3]  # the common one, and one of each


@pytest.mark.seconds
def test_the_first_rank_of_a_machine_goes_first_every_time(two_ranks, found):
    assert (two_ranks[0] / "order").read_text().split() == ["0", "1", "0", "1"]


def test_a_rank_that_does_not_come_is_not_waited_for_forever(monkeypatch):
    """Its token of an earlier attempt is still in the store."""
    store = dist.HashStore()
    store.set_timeout(world.timedelta(seconds=0.2))
    store.set("token/1", "of an earlier attempt")
    with pytest.raises(RuntimeError, match="a rank did not join"):
        world._meet(store, 0, 2)
