"""Two ranks over gloo in three attempts: `python -m tests.tools.ranks.attempts FOLDER`; prints the exit codes of each.

This process imports torch once, keeps the store like an agent of torchrun, and forks two ranks for each attempt.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tests.tools.builders import small
from utils.checkpoints.broadcast import read_once
from utils.checkpoints.files import read_checkpoint
from utils.distributed.signals import Interrupt
from utils.distributed.world import join_world
from utils.errors import ConfigError, DistributedError
from utils.training.parallel import check_weights, synchronize_buffers, wrap

FOLDER = Path(sys.argv[1])


def failure(call, *args):
    try:
        call(*args)
    except DistributedError as e:
        return str(e)


def first(rank):
    """Rank 1 fails, rank 0 waits for it: all keys of a job that ended badly stay in the store."""
    world = join_world(1)
    world.count_distinct("bad", "of an earlier attempt")
    with world.local_main_first():
        pass
    if rank == 1:
        return world.end_together(ConfigError("TAG", "wrong"), debug=False)
    world.gather(torch.zeros(1))


def second(rank):
    """Rank 0 comes late and cannot read a file; rank 1 finds the tokens of the first attempt."""
    time.sleep(0.0 if rank else 0.3)
    world = join_world(1)
    try:
        read_once(world, lambda: read_checkpoint(Path("gone.pth")))
    except Exception as e:
        return world.end_together(e, debug=False)


def exchanges(world, rank):
    """What the collective operations return."""
    own, calls = torch.tensor([rank, 10.0 + rank]), []
    found = {
        "place": [world.rank, world.size, world.local_rank, world.local_size, world.is_main],
        "gathered": world.gather(own).tolist(),
        "dtype": str(world.gather(own).dtype),
        "objects": world.gather_objects({"rank": rank}),
        "broadcast": world.broadcast(f"from {rank}"),
        "main only": world.main_only(lambda: (calls.append(rank), f"from {rank}")[1]),
        "calls": calls,
    }

    tensors = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool):
        tensors[str(dtype)] = torch.full((2, 3), 1 - rank).to(dtype)
    tensors["transposed"] = (torch.arange(6.0).reshape(2, 3) + 100 * rank).T
    tensors["scalar"] = torch.tensor(float(rank))
    tensors["empty"] = torch.empty(0, 3)
    tensors["parameter"] = nn.Parameter(torch.full((2,), float(rank)))
    for tensor in tensors.values():
        world.broadcast_tensor(tensor)
    found["tensors"] = {name: tensor.tolist() for name, tensor in tensors.items()}

    world.check_equal({"TRAIN.BASE_LR": 0.1, "torch": "2"}, "no remedy")
    values = {"a": 1, "TRAIN.BASE_LR": 0.1 + rank, "b": rank}
    found["unequal"] = failure(world.check_equal, values, "use one command everywhere")
    return found


def file_of_the_main_rank(world, rank):
    """What every rank has of a file that only the main one can read."""
    os.chdir(FOLDER / str(rank))  # a disk of its own
    read = read_once(world, lambda: read_checkpoint(Path("weights.pth")))
    return {
        "a": read["model"]["a"].tolist(),
        "kinds": [str(t.dtype) for t in read["model"].values()],
        "view": read["model"]["view"].tolist(),
        "rest": read["rest"],
    }


def comparisons(world, rank):
    """Weights that differ between the ranks, and buffers before and after they are averaged."""
    found = {}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2).bfloat16())
    check_weights(model, world, "epoch 0, update 5")
    with torch.no_grad():
        model[2].weight[1, 0] += rank * 1e-2
    found["weights"] = failure(check_weights, model, world, "epoch 0, update 5")
    with torch.no_grad():
        model[2].weight[1, 0] = 0.0 * (1 - 2 * rank)  # plus and minus zero are equal, but their bits differ
    found["zeros"] = failure(check_weights, model, world, "epoch 0, update 6")

    model[1](torch.full((4, 3), 1.0 + rank) * torch.arange(4.0)[:, None])
    model[1].num_batches_tracked += rank
    before = model[1].running_mean.tolist()
    synchronize_buffers([model, model[1]], world)
    norm = model[1]
    found["buffers"] = [before, norm.running_mean.tolist(), norm.running_var.tolist(), int(norm.num_batches_tracked)]
    return found


def dropped_blocks(world, rank):
    """One image per rank and blocks that neither rank keeps: by how much the gradients differ."""
    gradients = []
    for compiled in (False, True):
        model = small("swin", drop_path_rate=0.9)
        if compiled:
            model.compile(backend="aot_eager")
        wrapped = wrap(model, world)
        for seed in range(4):
            torch.manual_seed(10 * seed + rank)
            wrapped(torch.randn(1, 3, 32, 32)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return {
        "eager and compiled": (gradients[0] - gradients[1]).abs().max().item(),
        "ranks": (world.gather(gradients[0])[0] - world.gather(gradients[0])[1]).abs().max().item(),
        "largest": gradients[0].abs().max().item(),
    }


def stops(world, rank):
    """Whether an evaluation stops: for neither rank, then for rank 1."""
    interrupt = Interrupt()
    interrupt.join(world)
    found = [interrupt.stop_of_evaluation()]
    interrupt.stopped_early, interrupt._stop = rank == 1, 15 * rank
    return [*found, interrupt.stop_of_evaluation()]


def third(rank):
    """Rank 1 comes late; everything works."""
    time.sleep(0.3 if rank else 0.0)
    world = join_world(1)
    found = exchanges(world, rank) | {"read": file_of_the_main_rank(world, rank)} | comparisons(world, rank)
    found |= {"depth": dropped_blocks(world, rank), "stop": stops(world, rank)}
    own = torch.zeros(1)
    for item in ("both", f"of {rank}"):
        world.count_distinct("bad", item)
    world.gather(own)
    found["count"] = world.count_distinct("bad", "both")
    for _ in range(2):
        with world.local_main_first():
            if world.is_main:
                time.sleep(0.1)
            with open(FOLDER / "order", "a") as file:
                file.write(f"{rank}\n")
        world.gather(own)
    (FOLDER / f"{rank}.json").write_text(json.dumps(found))
    world.leave()


store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
place = {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": 0}
os.environ.update({name: str(value) for name, value in {**place, **agent}.items()})
codes = []
for attempt in (first, second, third):
    children = []
    for rank in (0, 1):
        if (pid := os.fork()) == 0:
            os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
            code = 99
            try:
                torch.set_num_threads(1)  # as in fork_ranks
                code = attempt(rank) or 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    codes.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
print(json.dumps(codes))
