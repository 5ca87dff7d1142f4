"""Ranks that share experts: `python -m tests.tools.ranks.experts FOLDER SIZE`.

Each writes to FOLDER by how much it differs from one rank with all tokens.
"""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from models.moe.mixture import MoeMlp
from models.moe.routing import RoutingOptions
from tests.tools.builders import fork_ranks, small
from utils.distributed.experts import (
    Placement,
    expert_parameters,
    group_maximum,
    own_part,
    reduce_expert_gradients,
    shard_experts,
    whole_tensor,
)

FOLDER, SIZE = Path(sys.argv[1]), int(sys.argv[2])
DIM, HIDDEN = 6, 12


def difference(a, b):
    return (a - b).abs().max().item() if a.shape == b.shape else "shapes differ"


def average(parameters):
    for p in parameters:
        dist.all_reduce(p.grad)
        p.grad /= SIZE


def layer_of(experts, **options):
    torch.manual_seed(0)
    layer = MoeMlp(DIM, HIDDEN, experts, RoutingOptions(**{"noise": 0.0, **options}))
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return layer


def work(rank, count, shape=()):
    torch.manual_seed(100 + rank)  # rank r has r tokens more than the first
    return [torch.randn(count + rank, *shape), torch.randn(count + rank, *shape)]


def compare(layer, placement, rank):
    """Returns the largest differences from one rank with all tokens: outputs, gradients of tokens and parameters."""
    parts = [work(r, 8, (DIM,)) for r in range(SIZE)]
    whole, sharded = copy.deepcopy(layer), copy.deepcopy(layer)
    everything = torch.cat([x for x, _ in parts]).requires_grad_()
    out = whole(everything)
    ((out * torch.cat([w for _, w in parts])).sum() / SIZE).backward()
    counts = [len(x) for x, _ in parts]

    shard_experts(sharded, placement)
    x, weight = parts[rank][0].requires_grad_(), parts[rank][1]
    own = sharded(x)
    (own * weight).sum().backward()
    average(sharded._moe_layer["gates"].parameters())
    reduce_expert_gradients(sharded)
    names, truth = expert_parameters(sharded), dict(whole.named_parameters())
    found = {"outputs": difference(own, out.split(counts)[rank])}
    found["tokens"] = difference(x.grad / SIZE, everything.grad.split(counts)[rank])
    found["weights"] = max(difference(whole_tensor(n, sharded.get_parameter(n), names[n]), truth[n]) for n in names)
    for name, p in sharded.named_parameters():
        gradient = whole_tensor(name, p.grad, names[name]) if name in names else p.grad
        found[name.rpartition(".")[2]] = difference(gradient, truth[name].grad)
        if name in names:
            back = own_part(name, truth[name], names[name])
            found["parts"] = max(found.get("parts", 0), difference(back, p))
    return found


def own_drops(experts, placement, rank):
    """A rank's capacity follows from its own tokens, whatever the others have."""
    layer = layer_of(experts, capacity_factor=0.5)
    x = work(rank, 7 + 20 * rank, (DIM,))[0]
    expected, dropped = layer(x), layer.statistics.dropped.item()
    shard_experts(layer, placement)
    return [difference(layer(x), expected), dropped, layer.statistics.dropped.item()]


def precision(experts, placement, rank):
    """bfloat16: what the ranks exchange is as exact as without them."""
    layer, (x, _) = layer_of(experts), work(rank, 8, (DIM,))
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        shard_experts(layer, placement)
        own = layer(x)
    own.float().sum().backward()
    return difference(own, expected)


def whole_model(placement, rank):
    """A Swin-MoE in DistributedDataParallel, with activation checkpointing and two micro-batches."""
    routing = RoutingOptions(top_k=2, capacity_factor=0.0, noise=0.0)
    model = small("swin_moe", num_experts=placement.experts, routing=routing)
    torch.manual_seed(5)
    images, weight = torch.randn(2 * SIZE, 3, 32, 32), torch.randn(2 * SIZE, 5)
    truth = copy.deepcopy(model)
    logits = truth(images)
    ((logits * weight).sum() / SIZE).backward()
    shard_experts(model, placement)
    model.set_grad_checkpointing(True)
    names = expert_parameters(model)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(names))
    wrapped = DistributedDataParallel(model)
    own = slice(2 * rank, 2 * rank + 2)
    with wrapped.no_sync():
        (wrapped(images[own][:1]) * weight[own][:1]).sum().backward()
    (wrapped(images[own][1:]) * weight[own][1:]).sum().backward()
    reduce_expert_gradients(model)
    with torch.no_grad():
        outputs = difference(model.eval()(images), truth.eval()(images))
    errors = []
    for (name, p), q in zip(model.named_parameters(), truth.parameters(), strict=True):
        gradient = whole_tensor(name, p.grad, names[name]) if name in names else p.grad
        errors.append(difference(gradient, q.grad) / max(1.0, q.grad.abs().max().item()))
    return [outputs, max(errors)]


def compiled(placement, rank):
    layer = layer_of(placement.experts, capacity_factor=0.0)
    x = work(rank, 8, (DIM,))[0]
    expected = layer(x)
    shard_experts(layer, placement)
    layer.compile(backend="aot_eager")
    out = layer(x)
    out.sum().backward()
    return difference(out, expected)


def run(rank):
    dist.init_process_group("gloo", init_method=f"file://{FOLDER}/store", rank=rank, world_size=SIZE)
    found = {}
    for experts, local in ((4, 1), (2, 1), (3, 1), (SIZE // 2, -2)):
        placement = Placement.of(experts, local, rank, SIZE)
        for top_k in (1, 2) if experts > 1 else (1,):
            layer = layer_of(experts, capacity_factor=0.0, top_k=top_k)
            found[f"{experts} experts, {local} per rank, top {top_k}"] = compare(layer, placement, rank)
    placement, sliced = Placement.of(4, 1, rank, SIZE), Placement.of(SIZE // 2, -2, rank, SIZE)
    found["drops"] = own_drops(4, placement, rank)
    found["bfloat16"] = [precision(4, placement, rank), precision(SIZE // 2, sliced, rank)]
    found["model"] = whole_model(placement, rank)
    found["maximum"] = group_maximum(rank + 7, placement)
    if SIZE == 2:
        found["compiled"] = compiled(placement, rank)
    (FOLDER / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


fork_ranks(run, SIZE)
