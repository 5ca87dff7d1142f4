"""Two ranks train by ddp and by fsdp, save, resume and evaluate: `python -m tests.ranks.sharding FOLDER`.

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

from models.routing import RoutingOptions
from models.weights.load import load_contents
from tests.builders import FLOAT32, fork_ranks, plan, shape, small
from utils.batches import Batch
from utils.distributed import join_world
from utils.evaluation.metrics import evaluate
from utils.training.classification import Classification
from utils.training.loop import train_epoch
from utils.training.optim import OptimizerOptions
from utils.training.parallel import ParallelOptions, weights_are_finite
from utils.training.saver import snapshot
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
        yield Batch(images, targets, weight, i % accumulation == accumulation - 1)


def build(kind, world, optimizer="adamw", seed=0):
    model = small("swinv2", drop_path_rate=0.3, extra_norm_every=2)
    model.set_grad_checkpointing(True)
    options = StateOptions(OptimizerOptions(optimizer), 0.9, parallel=ParallelOptions(kind))
    return TrainState.build(model, options, FLOAT32, world)


def train(state, world, updates):
    objective, losses = Classification(5, 0.1, val=None, precision=FLOAT32, world=world), []
    epoch = shape(40, batch_size=2, accumulation=2, world_size=2)
    run = plan(epoch, peak_lr=1e-2, clip_grad=0.5, epochs=1, warmup_epochs=0)

    def note(update):
        losses.append([float(update.losses["loss"]), update.grad_norm])

    train_epoch(state, updates, objective, run, note)
    return losses


def rank_of(folder, rank):
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    world, found = join_world(1), {}
    for optimizer in ("adamw", "sgd", "fused_lamb"):
        states = {kind: build(kind, world, optimizer) for kind in ("ddp", "fsdp")}
        found[optimizer] = {kind: train(state, world, work(rank)) for kind, state in states.items()}
        saved = {kind: snapshot(state.state_dict()) for kind, state in states.items()}
        found[optimizer]["kept"] = {kind: saved[kind]["model"]["head.weight"] is not None for kind in saved}
        if rank == 0:
            torch.save(saved, folder / f"{optimizer}.pth")
        if optimizer == "adamw":
            sharded = states["fsdp"]
            own = sum(p.to_local().numel() for p in sharded.model.parameters())
            found["part"] = own / sum(p.numel() for p in sharded.model.parameters())
            found["finite"] = weights_are_finite(sharded.model, world)

            # an evaluation of 5 images: 3 on the first rank in batches of 1, 2 on the other
            images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
            labels = torch.arange(5)
            shard = [(images[i : i + 1], labels[i : i + 1]) for i in range(rank, 5, 2)]
            for kind, state in states.items():
                accuracy, answers = evaluate(state.evaluated, shard, 5, FLOAT32, world)
                found[f"evaluation {kind}"] = [accuracy.loss, accuracy.count, answers.predicted.tolist()]

            # a new run resumes from the whole tensors, and goes on like this one
            dist.barrier()
            box = [saved["fsdp"] if rank == 0 else None]
            dist.broadcast_object_list(box)
            again = build("fsdp", world)
            model = small("swinv2", drop_path_rate=0.3, extra_norm_every=2)
            load_contents(model, {"model": box[0]["model"], "pretrained_windows": box[0]["pretrained_windows"]}, "x")
            model.set_grad_checkpointing(True)
            options = StateOptions(OptimizerOptions(), 0.9, parallel=ParallelOptions("fsdp"))
            again = TrainState.build(model, options, FLOAT32, world)
            again.load_state_dict(box[0], load_contents, "x")
            more = [train(state, world, work(rank + 7)) for state in (sharded, again)]
            found["resumed"] = more[0] == more[1]
            pairs = zip(*(each.ema.module.state_dict().values() for each in (sharded, again)), strict=True)
            found["average"] = all(torch.equal(a.to_local(), b.to_local()) for a, b in pairs)

            with torch.no_grad():
                first = next(sharded.model.parameters()).to_local()
                first.view(-1)[:1] = float("nan") if rank == 1 else 0.0
            found["not finite"] = weights_are_finite(sharded.model, world)
    state = TrainState.build(small("swin_moe", **EXPERTS), StateOptions(ema_decay=0.9), FLOAT32, world)
    found["experts"] = train(state, world, work(rank))
    found["shapes"] = [list(p.shape) for name, p in state.model.named_parameters() if name.endswith("fc1_w")]
    found["size"], found["lines"] = state.checkpoint_bytes(), state.describe()
    contents = snapshot(state.state_dict())
    if rank == 0:
        torch.save(contents, folder / "experts.pth")
    accuracy, answers = evaluate(state.evaluated, shard, 5, FLOAT32, world)
    found["evaluation experts"] = [accuracy.loss, accuracy.count, answers.predicted.tolist()]
    dist.barrier()
    contents = torch.load(folder / "experts.pth", weights_only=True)
    model = small("swin_moe", **EXPERTS)
    load_contents(model, {"model": contents["model"], "pretrained_windows": contents["pretrained_windows"]}, "x")
    again = TrainState.build(model, StateOptions(ema_decay=0.9), FLOAT32, world)
    again.load_state_dict(contents, load_contents, "x")
    again = again.state_dict()  # of the main rank; the other one only takes part
    same = [torch.equal(again["model"][name], value) for name, value in contents["model"].items() if rank == 0]
    same += [torch.equal(again["model_ema"][name], value) for name, value in contents["model_ema"].items() if rank == 0]
    for number, values in contents["optimizer"]["state"].items() if rank == 0 else ():
        same += [torch.equal(again["optimizer"]["state"][number][kind], value) for kind, value in values.items()]
    found["same"] = all(same)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(store.port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    fork_ranks(partial(rank_of, Path(sys.argv[1])), 2)
