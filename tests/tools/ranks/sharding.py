"""Two ranks train by ddp and by fsdp, save, resume and evaluate: `python -m tests.tools.ranks.sharding FOLDER`.

Each writes what it found to FOLDER.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models.moe.routing import RoutingOptions
from models.weights.load import load_contents
from tests.tools.builders import FLOAT32, HeldOut, classes_of, fork_ranks, objective, plan, shape, small
from utils.batches import Batch
from utils.distributed.world import join_world
from utils.runs.saver import snapshot
from utils.training.evaluate import evaluate
from utils.training.loop import train_epoch
from utils.training.optim import OptimizerOptions
from utils.training.parallel import ParallelOptions, weights_are_finite
from utils.training.state import StateOptions, TrainState

EXPERTS: dict[str, Any] = {
    "routing": RoutingOptions(capacity_factor=0.0, noise=0.0),
    "aux_loss_weight": 0.0,
    "num_experts": 4,
    "moe_blocks": ((1,), (1,)),
}


def work(rank, accumulation=2, weight=0.5):
    """Ten updates of a rank."""
    generator = torch.Generator().manual_seed(rank)
    for i in range(10 * accumulation):
        images = torch.randn(2, 3, 32, 32, generator=generator)
        targets = torch.randint(5, (2,), generator=generator)
        torch.manual_seed(100 * i + rank)  # of stochastic depth
        yield Batch(images, targets, (), weight, i % accumulation == accumulation - 1)


def build(kind, world, optimizer="adamw", contents=None):
    """A state with the model's own weights, or with those of a checkpoint."""
    model = small("swinv2", drop_path_rate=0.3, extra_norm_every=2)
    if contents is not None:
        load_contents(model, weights_of(contents), "x")
    model.set_grad_checkpointing(True)
    options = StateOptions(OptimizerOptions(optimizer), 0.9, parallel=ParallelOptions(kind))
    return TrainState.build(model, options, FLOAT32, world)


def weights_of(contents):
    return {name: contents[name] for name in ("model", "pretrained_windows")}


def train(state, world, updates):
    losses = []
    epoch = shape(40, batch_size=2, accumulation=2, world_size=2)
    run = plan(epoch, peak_lr=1e-2, clip_grad=0.5, epochs=1, warmup_epochs=0)

    def note(update):
        losses.append([float(update.losses["loss"]), update.grad_norm])

    train_epoch(state, updates, objective(), run, note)
    return losses


def judge(state, world, rank):
    """An evaluation of 5 images: 3 on the first rank in batches of 1, 2 on the other."""
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    shard = [Batch(images[i : i + 1], torch.tensor([i]), (i,)) for i in range(rank, 5, 2)]
    task, held = objective(), HeldOut([])
    evaluator = task.evaluator(held, classes_of())
    evaluate(state.evaluated, shard, evaluator, task.forward, world)
    predictions = evaluator._collector.result(world)
    metrics = evaluator.compute(world).metrics
    return [metrics["loss"], metrics["count"], predictions.predicted.tolist()]


def optimizers(folder, world, rank):
    """The same updates by ddp and fsdp, with every optimizer; the states of AdamW go on below."""
    found = {}
    for optimizer in ("sgd", "fused_lamb", "adamw"):
        states = {kind: build(kind, world, optimizer) for kind in ("ddp", "fsdp")}
        found[optimizer] = {kind: train(state, world, work(rank)) for kind, state in states.items()}
        saved = {kind: snapshot(state.state_dict()) for kind, state in states.items()}
        found[optimizer]["kept"] = {kind: saved[kind]["model"]["head.weight"] is not None for kind in saved}
        if rank == 0:
            torch.save(saved, folder / f"{optimizer}.pth")
    found |= {f"evaluation {kind}": judge(state, world, rank) for kind, state in states.items()}
    return found, states["fsdp"], saved["fsdp"]


def continued(sharded, saved, world, rank):
    """A new run resumes from the whole tensors, and goes on like the old one."""
    own = sum(p.to_local().numel() for p in sharded.model.parameters())
    found = {"part": own / sum(p.numel() for p in sharded.model.parameters())}
    found["finite"] = weights_are_finite(sharded.model, world)
    box = [saved if rank == 0 else None]
    dist.broadcast_object_list(box)
    again = build("fsdp", world, contents=box[0])
    again.load_state_dict(box[0], load_contents, "x")
    more = [train(state, world, work(rank + 7)) for state in (sharded, again)]
    found["resumed"] = more[0] == more[1]
    pairs = zip(*(each.ema.module.state_dict().values() for each in (sharded, again)), strict=True)
    found["average"] = all(torch.equal(a.to_local(), b.to_local()) for a, b in pairs)
    with torch.no_grad():
        first = next(sharded.model.parameters()).to_local()
        first.view(-1)[:1] = float("nan") if rank == 1 else 0.0
    return found | {"not finite": weights_are_finite(sharded.model, world)}


def experts(folder, world, rank):
    """Divided experts train, are evaluated, saved and loaded."""
    state = TrainState.build(small("swin_moe", **EXPERTS), StateOptions(ema_decay=0.9), FLOAT32, world)
    found = {"experts": train(state, world, work(rank))}
    found["shapes"] = [list(p.shape) for name, p in state.model.named_parameters() if name.endswith("fc1_w")]
    found["size"], found["lines"] = state.checkpoint_bytes(), state.describe()
    contents = snapshot(state.state_dict())
    if rank == 0:
        torch.save(contents, folder / "experts.pth")
    found["evaluation experts"] = judge(state, world, rank)
    dist.barrier()
    contents = torch.load(folder / "experts.pth", weights_only=True)
    model = small("swin_moe", **EXPERTS)
    load_contents(model, weights_of(contents), "x")
    again = TrainState.build(model, StateOptions(ema_decay=0.9), FLOAT32, world)
    again.load_state_dict(contents, load_contents, "x")
    again = again.state_dict()
    if rank:  # it only takes part in gathering
        return found | {"same": True}
    same = [torch.equal(again[k][name], value) for k in ("model", "model_ema") for name, value in contents[k].items()]
    for number, values in contents["optimizer"]["state"].items():
        same += [torch.equal(again["optimizer"]["state"][number][kind], value) for kind, value in values.items()]
    return found | {"same": all(same)}


def rank_of(folder, rank):
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    world = join_world(1)
    found, sharded, saved = optimizers(folder, world, rank)
    found |= continued(sharded, saved, world, rank) | experts(folder, world, rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(store.port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    fork_ranks(partial(rank_of, Path(sys.argv[1])), 2)
