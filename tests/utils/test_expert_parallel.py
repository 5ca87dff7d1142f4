"""Experts on several ranks against the same experts on one: placements by hand, then two and four gloo ranks."""

import json
import subprocess
import sys

import pytest
import torch

from models.moe import MoeMlp
from models.routing import RoutingOptions
from tests.builders import small
from tests.conftest import ROOT, environment
from utils.errors import ConfigError
from utils.expert_parallel import (
    Placement,
    expert_parameters,
    gather_units,
    own_part,
    reduce_expert_gradients,
    shard_experts,
    whole_tensor,
)


@pytest.mark.parametrize(
    ("experts", "local", "size", "slices", "group", "replicas", "units"),
    [
        (8, 1, 1, 1, 1, 1, 8),
        (8, 1, 3, 1, 1, 3, 8),
        (8, 1, 4, 1, 4, 1, 2),
        (8, 1, 16, 1, 8, 2, 1),
        (8, -4, 32, 4, 32, 1, 1),
        (8, -4, 2, 1, 2, 1, 4),
        (6, 2, 4, 1, 2, 2, 3),
        (1, -2, 2, 2, 2, 1, 1),
    ],
)
def test_placements(experts, local, size, slices, group, replicas, units):
    placed = [Placement.of(experts, local, rank, size) for rank in range(size)]
    for rank, p in enumerate(placed):
        assert (p.slices, p.group_size, p.replicas, p.local_units) == (slices, group, replicas, units)
        assert p.first_unit == rank % group * units
    held = [unit for p in placed[:group] for unit in range(p.first_unit, p.first_unit + p.local_units)]
    assert held == list(range(experts * slices))


def test_a_slice_has_a_share_of_the_hidden_channels_and_the_whole_last_bias():
    weight, bias = torch.arange(24.0).view(2, 6, 2), torch.arange(4.0).view(2, 2)
    third = Placement(2, slices=3, group_size=6, rank=4, world_size=6)  # the second slice of expert 1
    assert own_part("x.batched_fc1_w", weight, third).tolist() == weight[1:, 2:4].tolist()
    assert own_part("batched_fc1_bias", weight[..., 0], third).tolist() == weight[1:, 2:4, 0].tolist()
    assert own_part("x.batched_fc2_bias", bias, third).tolist() == bias[1:].tolist()
    with pytest.raises(ConfigError, match=r"6 hidden channels, which 4 ranks .*: MODEL\.SWIN_MOE\.NUM_LOCAL_EXPERTS"):
        own_part("batched_fc1_w", weight, Placement(2, slices=4, group_size=8, world_size=8))


def test_on_one_rank_experts_are_whole():
    model, alone = small("swin_moe"), Placement.of(4, 1, 0, 1)
    before = model.state_dict()
    shard_experts(model, alone)
    names = expert_parameters(model)
    assert set(names.values()) == {alone} and len(names) == 8
    assert all(".experts.batched_" in name and name in before for name in names)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    part = model.get_parameter(next(iter(names)))
    assert torch.equal(whole_tensor("batched_fc1_w", part, alone), part)
    part.grad = torch.ones_like(part)
    reduce_expert_gradients(model)
    assert part.grad.eq(1).all() and torch.equal(gather_units(part, alone), part)


def test_frozen_biases_stay_frozen():
    layer = MoeMlp(4, 8, 2, RoutingOptions(), fc2_bias=False)
    shard_experts(layer, Placement.of(2, 1, 0, 1))
    assert [name for name, p in layer.named_parameters() if not p.requires_grad] == [
        "_moe_layer.experts.batched_fc2_bias"
    ]


# The parent imports torch once and forks the ranks; each writes the largest differences it finds.
PROGRAM = """
import copy, json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from models.moe import MoeMlp
from models.routing import RoutingOptions
from tests.builders import fork_ranks, small
from utils.expert_parallel import *
from utils.expert_parallel import group_maximum

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
    for name, p in layer.named_parameters():
        torch.nn.init.normal_(p, std=0.3)
    return layer


def work(rank, count, shape=()):
    torch.manual_seed(100 + rank)  # rank r has r tokens more than the first
    return [torch.randn(count + rank, *shape), torch.randn(count + rank, *shape)]


def compare(layer, placement, rank):
    "Returns the largest differences from one rank with all tokens: outputs, gradients of tokens, router and experts."
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
    "A rank's capacity follows from its own tokens, whatever the others have."
    layer = layer_of(experts, capacity_factor=0.5)
    x = work(rank, 7 + 20 * rank, (DIM,))[0]
    expected, dropped = layer(x), layer.statistics.dropped.item()
    shard_experts(layer, placement)
    return [difference(layer(x), expected), dropped, layer.statistics.dropped.item()]


def precision(experts, placement, rank):
    "bfloat16: what the ranks exchange is as exact as without them."
    layer, (x, _) = layer_of(experts), work(rank, 8, (DIM,))
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        shard_experts(layer, placement)
        own = layer(x)
    own.float().sum().backward()
    return difference(own, expected)


def whole_model(placement, rank):
    "A Swin-MoE in DistributedDataParallel, with activation checkpointing and two micro-batches."
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
"""


@pytest.fixture(scope="module", params=[2, 4], ids=["two ranks", "four ranks"])
def found(request, tmp_path_factory):
    """What every rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(folder / "program.py"), str(folder), str(request.param)],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.seconds
def test_ranks_equal_one_rank_with_all_tokens_in_outputs_and_gradients(found):
    for rank in found:
        settings = [name for name in rank if "experts" in name]
        assert len(settings) == (7 if len(found) == 2 else 8)
        for setting in settings:
            largest = rank[setting]
            assert set(largest) == {
                *("outputs", "tokens", "weights", "parts", "weight"),
                *("batched_fc1_w", "batched_fc2_w", "batched_fc1_bias", "batched_fc2_bias"),
            }
            assert largest["parts"] == largest["weights"] == 0.0
            assert max(largest.values()) < 1e-6, (setting, largest)


@pytest.mark.seconds
def test_a_ranks_drops_follow_its_own_tokens(found):
    for rank in found:
        error, expected, dropped = rank["drops"]
        assert error < 1e-6 and dropped == expected > 0
    assert len({rank["drops"][1] for rank in found}) == len(found)


@pytest.mark.seconds
def test_bfloat16_is_exchanged_and_slices_are_summed(found):
    for rank in found:
        whole, sliced = rank["bfloat16"]
        assert whole == 0.0 and sliced < 2e-2


@pytest.mark.seconds
def test_a_whole_model_in_distributed_data_parallel_with_checkpointing_and_accumulation(found):
    for rank in found:
        outputs, gradients = rank["model"]
        assert outputs < 1e-6 and gradients < 1e-6


@pytest.mark.seconds
def test_the_largest_number_of_a_group(found):
    assert [rank["maximum"] for rank in found] == [6 + len(found)] * len(found)


@pytest.mark.seconds
def test_compiled_it_gives_the_same(found):
    assert all(rank.get("compiled", 0.0) < 1e-6 for rank in found)
