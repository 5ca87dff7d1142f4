"""Two ranks with FSDP, and with experts, beside DistributedDataParallel and one rank: losses, files, evaluation."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models.weights.load import load_contents
from tests.conftest import run_ranks
from tests.tools.builders import configured, evaluation_of, objective, plan, shape, small, train_state
from tests.tools.errors import raises
from tests.tools.ranks.sharding import EXPERTS, work
from utils.batches import Batch
from utils.distributed.experts import Placement
from utils.distributed.sharding import (
    ExpertShard,
    needs_all_ranks,
    own_moments,
    shards_of,
    total_norms,
    whole_moments,
    whole_tensors,
)
from utils.distributed.world import World
from utils.errors import ConfigError, DistributedError
from utils.training import parallel
from utils.training.evaluate import in_step
from utils.training.loop import train_epoch
from utils.training.optim import OptimizerOptions
from utils.training.parallel import ParallelOptions, shard


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two ranks found, and the checkpoints of the main rank by optimizer and kind."""
    folder = tmp_path_factory.mktemp("fsdp")
    run_ranks("sharding", folder)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return found, {
        name: torch.load(folder / f"{name}.pth", weights_only=True)
        for name in ("adamw", "sgd", "fused_lamb", "experts")
    }


@pytest.mark.seconds
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "fused_lamb"])
def test_ten_updates_equal_those_of_ddp(trained, optimizer):
    """With clipping, averaged weights, accumulation, activation checkpointing and stochastic depth."""
    found, saved = trained
    for own in found:
        ddp, fsdp = (torch.tensor(own[optimizer][kind]) for kind in ("ddp", "fsdp"))
        assert ddp.shape == (10, 2) and (ddp[:, 0] - fsdp[:, 0]).abs().max() < 1e-5
        assert (ddp[:, 1] / fsdp[:, 1] - 1).abs().max() < 1e-4 and ddp[:, 1].max() > 0.5  # it was clipped
    ddp, fsdp = saved[optimizer]["ddp"], saved[optimizer]["fsdp"]
    assert ddp.keys() == fsdp.keys() and list(ddp["model"]) == list(fsdp["model"])
    for part in ("model", "model_ema"):
        for name, value in ddp[part].items():
            # entries without a gradient to speak of take steps of random sign in Adam
            assert value.shape == fsdp[part][name].shape and (value - fsdp[part][name]).abs().mean() < 1e-5, name
    for number, moments in ddp["optimizer"]["state"].items():
        other = fsdp["optimizer"]["state"][number]
        assert {k: v.shape for k, v in moments.items() if isinstance(v, torch.Tensor)} == {
            k: v.shape for k, v in other.items() if isinstance(v, torch.Tensor)
        }
    assert [own[optimizer]["kept"] for own in found] == [{"ddp": True, "fsdp": True}, {"ddp": True, "fsdp": False}]


@pytest.mark.seconds
def test_every_rank_holds_about_half_of_the_parameters(trained):
    assert all(0.45 < own["part"] < 0.55 for own in trained[0])


@pytest.mark.seconds
def test_an_evaluation_of_uneven_shards_is_exact(trained):
    for own in trained[0]:
        ddp, fsdp = own["evaluation ddp"], own["evaluation fsdp"]
        assert fsdp[1] == 5 and fsdp[0] == pytest.approx(ddp[0], abs=1e-4) and fsdp[2] == ddp[2]


@pytest.mark.seconds
def test_a_resumed_run_goes_on_with_the_same_bits(trained):
    assert all(own["resumed"] and own["average"] for own in trained[0])


@pytest.mark.seconds
def test_a_weight_that_is_not_finite_on_one_rank_is_noticed_on_all(trained):
    assert [own["finite"] for own in trained[0]] == [True, True]
    assert [own["not finite"] for own in trained[0]] == [False, False]


@pytest.mark.seconds
def test_a_file_of_two_ranks_resumes_on_one(trained):
    saved = trained[1]["adamw"]["fsdp"]
    model = small("swinv2", drop_path_rate=0.3, extra_norm_every=2)
    load_contents(model, {"model": saved["model"], "pretrained_windows": saved["pretrained_windows"]}, "x")
    state = train_state(model, ema_decay=0.9)
    state.load_state_dict(saved, load_contents, "x")
    assert state.update == 10 and state.state_dict()["optimizer"]["state"].keys() == saved["optimizer"]["state"].keys()
    train_epoch(state, list(work(0))[:2], objective(), plan(shape(40)), lambda update: None)
    assert state.update == 11


@pytest.mark.seconds
def test_experts_on_two_ranks_train_like_all_on_one(trained):
    """Losses, gradient norms, weights and moments, and the evaluation with averaged weights."""
    found, saved = trained[0], trained[1]["experts"]
    state, losses = train_state(small("swin_moe", **EXPERTS), ema_decay=0.9), []
    both = [batch for pair in zip(work(0, weight=0.25), work(1, weight=0.25), strict=True) for batch in pair]
    updates = [replace(batch, ends_update=i % 4 == 3) for i, batch in enumerate(both)]
    run = plan(shape(40, batch_size=2, accumulation=4), peak_lr=1e-2, clip_grad=0.5, epochs=1, warmup_epochs=0)

    def note(update):
        losses.append([float(update.losses["loss"]), update.grad_norm])

    train_epoch(state, updates, objective(), run, note)
    alone = torch.tensor(losses)
    ranks = torch.tensor([own["experts"] for own in found]).mean(0)
    assert (alone[:, 0] - ranks[:, 0]).abs().max() < 1e-5 and (alone[:, 1] / ranks[:, 1] - 1).abs().max() < 1e-4
    assert found[0]["experts"][0][1] == found[1]["experts"][0][1]  # one norm, over the experts of both
    whole = state.state_dict()
    assert list(saved["model"]) == list(whole["model"])
    for name, value in whole["model"].items():
        assert value.shape == saved["model"][name].shape and (value - saved["model"][name]).abs().mean() < 1e-5, name
    for number, moments in whole["optimizer"]["state"].items():
        other = saved["optimizer"]["state"][number]
        assert all(other[kind].shape == value.shape for kind, value in moments.items())
    assert all(own["shapes"] == [[2, 32, 8], [2, 64, 16]] and own["same"] for own in found)
    assert all((own["size"], own["lines"]) == (state.checkpoint_bytes(), state.describe()) for own in found)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    evaluation = evaluation_of(objective(), state.evaluated, [Batch(images, torch.arange(5))])
    with torch.no_grad():
        expected = state.evaluated(images).argmax(1).tolist()
    for own in found:
        loss, count, predicted = own["evaluation experts"]
        assert (count, predicted) == (5, expected) and loss == pytest.approx(evaluation.metrics["loss"], abs=1e-4)


class Halves:
    """A parameter of which the other rank holds an equal part."""

    def numel(self, part):
        return 2 * part.numel()

    def whole(self, part):
        return torch.cat([part, part])

    def part(self, whole):
        return whole[: len(whole) // 2]

    def holder(self, rank):
        return rank

    def total(self, values):
        return 2 * values


def test_only_what_is_sharded_is_collected():
    shards, tensors = {"a": Halves()}, {"a": torch.ones(2), "b": torch.zeros(3)}
    assert whole_tensors(tensors, shards, keep=True)["a"].tolist() == [1.0] * 4
    kept = whole_tensors(tensors, shards, keep=False)
    assert kept["a"] is None and kept["b"] is tensors["b"]
    state = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.ones(2)}, 1: {"m": torch.zeros(3)}},
        "param_groups": [],
    }
    whole = whole_moments(state, {0: "a", 1: "b"}, shards, keep=True)
    assert whole["state"][0]["m"].shape == (4,) and whole["state"][0]["step"] == 3.0
    assert whole["state"][1]["m"].shape == (3,) and whole["param_groups"] == []
    assert own_moments(whole["state"], {0: "a", 1: "b"}, shards)[0]["m"].shape == (2,)


def test_replicas_of_experts_must_be_equal_and_other_experts_need_not(monkeypatch):
    shards = {"0.weight": ExpertShard("0.weight", Placement(4, group_size=2, rank=0, world_size=4))}
    monkeypatch.setattr(parallel, "shards_of", lambda model: shards)
    model, others = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), []
    world = SimpleNamespace(size=4, gather_objects=lambda own: [own, [own[0] + 1, own[1]], own, *others])
    others.append([0, 0])
    with raises(DistributedError, "rank 3", "rank 1 at here", "0.weight"):
        parallel.check_weights(model, world, "here")
    world.gather_objects = lambda own: [own, [own[0] + 1, own[1]], own, [own[0] + 1, own[1]]]
    parallel.check_weights(model, world, "here")


def test_lamb_needs_whole_experts(monkeypatch):
    shards = {"x": ExpertShard("x", Placement(4, group_size=2, rank=0, world_size=2))}
    monkeypatch.setattr("utils.training.state.shards_of", lambda model: shards)
    with raises(ConfigError, "TRAIN.OPTIMIZER.NAME", "LAMB", "adamw", "TRAIN.PARALLEL"):
        train_state(small(), optimizer=OptimizerOptions("fused_lamb"))


def test_norms_of_parts_are_added_up_only_where_there_are_others():
    norms = total_norms(("a", "b"), torch.tensor([3.0, 4.0]), {"a": Halves()})
    assert norms.tolist() == [pytest.approx(3 * 2**0.5), 4.0]


def test_one_rank_has_nothing_to_shard():
    model = small()
    shard(model, World(), ParallelOptions("fsdp"))
    assert not shards_of(model) and not needs_all_ranks(model) and type(model).__name__ == "SwinTransformer"
    assert train_state(model).shards == {}
    batches = [Batch(torch.zeros(1, 3, 32, 32), torch.zeros(1))]
    assert list(in_step(model, batches, lambda model, batch: None, World())) == batches


@pytest.mark.parametrize("stacked", [True, False])
def test_a_rank_without_batches_takes_part_until_all_are_done(monkeypatch, stacked):
    monkeypatch.setattr("utils.training.evaluate.needs_all_ranks", lambda model: True)
    form = (stacked, (3, 4, 4))
    turns = iter([[form, form], [None, form], [None, None]])
    asked = []
    world = SimpleNamespace(gather_objects=lambda own: asked.append(own) or next(turns), device=torch.device("cpu"))
    seen = []
    batch = Batch(torch.ones(2, 3, 4, 4) if stacked else [torch.ones(3, 4, 4)], torch.zeros(2))
    assert list(in_step(nn.Identity(), [batch], lambda model, other: seen.append(other), world)) == [batch]
    assert asked == [form, None, None]
    ((images,),) = [other.images for other in seen]
    assert images.shape == (3, 4, 4) and not images.any() and isinstance(seen[0].images, list) != stacked


@pytest.mark.parametrize(("key", "value"), [("TRAIN__COMPILE", True), ("AMP_DTYPE", "float16")])
def test_what_does_not_go_together_is_rejected(key, value):
    with raises(ConfigError, key.replace("__", "."), value, "TRAIN.PARALLEL fsdp"):
        configured(TRAIN__PARALLEL="fsdp", **{key: value})
