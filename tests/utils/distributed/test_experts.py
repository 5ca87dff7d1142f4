"""Experts on several ranks against the same experts on one: placements by hand, then two and four gloo ranks."""

import json

import pytest
import torch

from models.moe.mixture import MoeMlp
from models.moe.routing import RoutingOptions
from tests.conftest import run_ranks
from tests.tools.builders import small
from tests.tools.errors import raises
from utils.distributed.experts import (
    Placement,
    expert_parameters,
    gather_units,
    own_part,
    reduce_expert_gradients,
    shard_experts,
    whole_tensor,
)
from utils.errors import ConfigError


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
    with raises(ConfigError, "MODEL.SWIN_MOE.NUM_LOCAL_EXPERTS", "6 hidden channels", "4 ranks"):
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


@pytest.fixture(scope="module", params=[2, 4], ids=["two ranks", "four ranks"])
def found(request, tmp_path_factory):
    """What every rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks("experts", folder, request.param)
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
