"""The order of an epoch and its division, by counting."""

import pytest
import torch

from data.pipeline.samplers import EvalSampler, Groups, TrainSampler, epoch_order, grouped_order, micro_batches
from utils.batches import EpochShape


def work(size, world, accumulation, global_batch=8, first=0):
    shape = EpochShape(size, global_batch // (world * accumulation), accumulation, world)
    order = epoch_order(size, 5)
    return [list(micro_batches(order, shape, rank, range(first, shape.updates))) for rank in range(world)]


def samples_of(ranks, update):
    return sorted(s for rank in ranks for m in rank if m.update == update and m.weight for s in m.samples.tolist())


def test_an_epoch_is_a_permutation_that_its_seed_decides():
    assert sorted(epoch_order(50, 1).tolist()) == list(range(50))
    assert torch.equal(epoch_order(50, 1), epoch_order(50, 1))
    assert not torch.equal(epoch_order(50, 1), epoch_order(50, 2))


@pytest.mark.parametrize(("world", "accumulation"), [(1, 2), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_an_update_has_the_same_samples_for_every_split(world, accumulation):
    alone, split = work(29, 1, 1), work(29, world, accumulation)
    for update in range(4):
        assert samples_of(split, update) == samples_of(alone, update)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_weights_make_the_mean_over_the_update(world, accumulation):
    """With loss i for sample i, weighted means averaged over ranks give the mean of the update's samples."""
    batch = world * accumulation * 2
    size = 2 * batch + batch // 4 + 1
    ranks = work(size, world, accumulation, global_batch=batch)
    assert len({len(r) for r in ranks}) == 1  # every rank takes every step
    order = epoch_order(size, 5)
    for update in range(3):
        total = sum(m.weight * m.samples.double().mean().item() for r in ranks for m in r if m.update == update)
        assert total / world == pytest.approx(order[update * batch : (update + 1) * batch].double().mean().item())


def test_a_rank_without_samples_keeps_in_step_with_weight_zero():
    ranks = work(5, 4, 1, global_batch=4)
    assert [r[1].weight for r in ranks] == [4, 0, 0, 0]
    assert all(len(r[1].samples) == 1 and r[1].ends_update for r in ranks)


def test_fault_37_a_group_that_accumulation_leaves_over_is_used():
    (rank,) = work(5 * 4, 1, 2)  # five batches of 4, two to an update
    assert [(m.update, m.index, m.ends_update, m.weight) for m in rank] == [
        (0, 0, False, 0.5),
        (0, 1, True, 0.5),
        (1, 0, False, 0.5),
        (1, 1, True, 0.5),
        (2, 0, True, 1.0),
    ]


def test_an_epoch_goes_on_at_any_update():
    resumed, whole = work(29, 2, 2, first=2)[1], [m for m in work(29, 2, 2)[1] if m.update >= 2]
    assert [(m.update, m.index, m.samples.tolist()) for m in resumed] == [
        (m.update, m.index, m.samples.tolist()) for m in whole
    ]


def test_the_epoch_travels_with_every_sample():
    sampler = TrainSampler(EpochShape(8, 2, 2, 1), rank=0, epoch_seed=lambda epoch: epoch)
    plan = list(sampler.start(3, first_update=1))
    batches = list(sampler)
    assert len(sampler) == len(plan) == 2
    assert batches == [[(3, s) for s in m.samples.tolist()] for m in plan]


@pytest.mark.parametrize(("size", "world", "batch"), [(65, 2, 7), (7, 3, 64), (2, 3, 1), (65, 1, 65)])
def test_fault_29_evaluation_shards_hold_every_sample_once(size, world, batch):
    shards = [EvalSampler(size, batch, rank, world) for rank in range(world)]
    seen = [sample for shard in shards for batch_ in shard for _, sample in batch_]
    assert sorted(seen) == list(range(size))
    assert all(len(list(shard)) == len(shard) for shard in shards)


@pytest.mark.parametrize("unit", [1, 2, 4])
def test_units_of_an_epoch_are_of_one_group(unit):
    of = (torch.arange(61) % 3 == 0).long()
    order = grouped_order(Groups(of, unit), 3)
    assert sorted(order.tolist()) == list(range(61)) and torch.equal(order, grouped_order(Groups(of, unit), 3))
    assert not torch.equal(order, grouped_order(Groups(of, unit), 4))
    whole = sum(int((of == group).sum()) // unit for group in (0, 1))
    assert all(len(set(each.tolist())) == 1 for each in of[order][: whole * unit].split(unit))
    assert set(of[order][: 16 * unit].tolist()) == {0, 1}  # units of both groups are mixed


def test_samples_that_fill_no_unit_change_from_epoch_to_epoch():
    last = {int(grouped_order(Groups(torch.zeros(9, dtype=torch.int64), 2), seed)[-1]) for seed in range(60)}
    assert last == set(range(9))
