"""Routers, order, capacity and balance losses by hand."""

import math

import pytest
import torch

from models.moe.routing import (
    Choice,
    CosineRouter,
    LinearRouter,
    RoutingOptions,
    capacity,
    choose,
    count,
    gshard_loss,
    load_importance_loss,
    new_router,
    places,
)
from tests.tools.errors import raises
from utils.errors import ConfigError


def chosen(experts, scores=None):
    """A choice of (T, k) experts, whose best scores fall from token to token unless given."""
    experts = torch.tensor(experts)
    scores = torch.linspace(0.9, 0.5, len(experts)) if scores is None else torch.tensor(scores)
    return Choice(experts, torch.zeros(experts.shape), scores, torch.zeros(()))


def test_the_linear_router_is_a_product_in_float32():
    torch.manual_seed(0)
    router, tokens = LinearRouter(6, 3), torch.randn(5, 6)
    expected = tokens @ router.wg.weight.T
    with torch.autocast("cpu", torch.bfloat16):
        logits = router(tokens)
    assert logits.dtype == torch.float32 and [name for name, _ in router.named_parameters()] == ["wg.weight"]
    torch.testing.assert_close(logits, expected)


def test_the_cosine_router_is_a_scaled_cosine_in_float32():
    torch.manual_seed(0)
    router, tokens = CosineRouter(6, 3, 4, 0.5), torch.randn(5, 6)
    assert router.temperature.item() == pytest.approx(math.log(2))
    assert 0.005 < CosineRouter(6, 64, 256, 0.5).sim_matrix.std() < 0.015
    with torch.autocast("cpu", torch.bfloat16):
        logits = router(tokens)
    assert logits.dtype == torch.float32
    for i, token in enumerate(tokens):
        projected = router.cosine_projector.weight @ token + router.cosine_projector.bias
        for j in range(3):
            cosine = torch.cosine_similarity(projected, router.sim_matrix[:, j], dim=0)
            assert logits[i, j].item() == pytest.approx(2 * cosine.item(), abs=1e-5)
    torch.nn.init.constant_(router.temperature, 9.0)  # clamped at a scale of 100
    torch.testing.assert_close(router(tokens), 50 * logits)
    assert set(router.state_dict()) == {
        *("temperature", "sim_matrix", "cosine_projector.weight", "cosine_projector.bias")
    }


def test_the_options_choose_the_router():
    assert isinstance(new_router(6, 3, RoutingOptions()), LinearRouter)
    router = new_router(6, 3, RoutingOptions(cosine=True, cosine_dim=5, init_temperature=0.25))
    assert isinstance(router, CosineRouter) and router.sim_matrix.shape == (5, 3)
    assert router.temperature.item() == pytest.approx(math.log(4))


def test_noise_is_added_in_training_only_and_divided_by_the_number_of_experts(monkeypatch):
    logits, noise = torch.tensor([[1.0, 1.5]]), torch.tensor([[2.0, 0.0]])
    monkeypatch.setattr(torch, "randn_like", lambda x: noise)
    quiet, noisy = (choose(logits, RoutingOptions(noise=1.0), training) for training in (False, True))
    assert (quiet.experts.tolist(), noisy.experts.tolist()) == ([[1]], [[0]])
    assert noisy.gates.item() == pytest.approx(1 / (1 + math.exp(-0.5)))  # logits 2.0 and 1.5
    assert torch.equal(choose(logits, RoutingOptions(noise=0.0), True).gates, quiet.gates)


def test_gates_are_scores_normalised_only_if_wanted():
    logits = torch.tensor([[math.log(5), math.log(3), math.log(2)]])
    plain = choose(logits, RoutingOptions(top_k=2), False)
    assert plain.experts.tolist() == [[0, 1]] and plain.gates[0].tolist() == pytest.approx([0.5, 0.3])
    normalized = choose(logits, RoutingOptions(top_k=2, normalize_gate=True), False)
    assert normalized.gates[0].tolist() == pytest.approx([0.625, 0.375]) and normalized.scores.item() == 0.5
    assert choose(logits, RoutingOptions(normalize_gate=True), False).gates.item() == pytest.approx(0.5)


def test_tokens_queue_in_order_of_the_batch_or_of_their_best_score():
    experts = [[0, 1], [0, 2], [1, 0], [0, 1]]
    load = count(torch.tensor(experts), 4)
    assert load.tolist() == [4, 3, 1, 0]
    by_batch = places(chosen(experts), load, prioritized=False)
    assert by_batch.tolist() == [[0, 1, 0, 2], [1, 0, 3, 2]]  # second choices after all first ones
    by_score = places(chosen(experts, [0.5, 0.9, 0.6, 0.7]), load, prioritized=True)
    assert by_score.tolist() == [[2, 0, 0, 1], [2, 0, 3, 1]]


@pytest.mark.parametrize(
    ("factor", "top_k", "tokens", "expected"),
    [(1.25, 1, 40, 12), (1.25, 1, 41, 13), (0.5, 1, 40, 5), (1.25, 2, 40, 24), (0.5, 2, 4, 0), (0.0, 1, 9, 7)],
)
def test_capacity(factor, top_k, tokens, expected):
    """k * int(factor * ceil(tokens / 4)), and for factor 0 the largest load."""
    options = RoutingOptions(capacity_factor=factor, top_k=top_k)
    assert capacity(tokens, torch.tensor([7, 1, 1, 0]), options) == expected


def test_without_values_an_unlimited_capacity_is_that_of_an_even_distribution():
    options = RoutingOptions(capacity_factor=0.0, top_k=2)
    assert capacity(10, torch.zeros(4, device="meta"), options) == 5


def test_gshard_loss_is_1_for_an_even_distribution_and_the_experts_for_a_collapsed_one():
    even = torch.full((4, 2), 0.5)
    assert gshard_loss(even, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1.0)
    assert gshard_loss(torch.tensor([[1.0, 0.0]] * 4), torch.zeros(4).long()).item() == pytest.approx(2.0)


def test_load_and_importance_by_hand():
    scores = torch.tensor([[0.8, 0.2], [0.6, 0.4]])  # importance 1.4 and 0.6: variance 0.32, mean 1
    assert load_importance_loss(scores, torch.zeros(2, 1), 0.0).item() == pytest.approx(0.32)
    phi = [[0.5 * (1 + math.erf((s - t) / 0.5 / 2**0.5)) for s in row] for row, t in ((scores[0], 0.5), (scores[1], 1))]
    load = [phi[0][i] + phi[1][i] for i in (0, 1)]
    mean = sum(load) / 2
    variation = sum((value - mean) ** 2 for value in load) / mean**2
    loss = load_importance_loss(scores, torch.tensor([[0.5], [1.0]]), 0.5)
    assert loss.item() == pytest.approx((0.32 + variation) / 2, rel=1e-5)


def test_the_losses_are_finite_where_no_token_comes_near_an_expert_and_for_a_single_one():
    scores = torch.tensor([[0.8, 0.2]])
    assert load_importance_loss(scores, torch.tensor([[50.0]]), 0.01).item() == pytest.approx(0.36 / 2 / 0.5, rel=1e-4)
    assert load_importance_loss(torch.ones(3, 1), torch.zeros(3, 1), 1.0).item() == 0.0


def test_more_choices_than_experts_are_rejected():
    with raises(ConfigError, "MODEL.SWIN_MOE.TOP_VALUE", "3 of 2", "at most 2"):
        RoutingOptions(top_k=3).check(2)
