"""A mixture of experts against a loop over tokens and experts, written from the formulas."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from models.moe.mixture import Experts, MoeMlp
from models.moe.routing import RoutingOptions

EXPERTS, DIM, HIDDEN, SHAPE = 4, 6, 8, (2, 3, 4, 6)  # 24 tokens


def mixture(seed=0, **options):
    """A layer with weights large enough that every part affects the output, and its input."""
    torch.manual_seed(seed)
    layer = MoeMlp(DIM, HIDDEN, EXPERTS, RoutingOptions(**{"cosine_dim": 5, **options}))
    for name, p in layer.named_parameters():
        torch.nn.init.normal_(p, std=0.2 if "bias" in name else 0.6)
    return layer, torch.randn(SHAPE, requires_grad=True)


def logits_of(layer, token):
    p = {name.rpartition("gates.0.")[2]: value for name, value in layer.named_parameters()}
    if "wg.weight" in p:
        return [(row * token).sum() for row in p["wg.weight"]]
    projected = p["cosine_projector.weight"] @ token + p["cosine_projector.bias"]
    scale = p["temperature"].clamp(max=math.log(100)).exp()[0]
    return [scale * (projected @ s) / (projected.norm() * s.norm()) for s in p["sim_matrix"].T]


def expert_of(layer, number, token):
    p = {name.rpartition(".")[2]: value[number] for name, value in layer._moe_layer["experts"].named_parameters()}
    hidden = [F.gelu(w @ token + b) for w, b in zip(p["batched_fc1_w"], p["batched_fc1_bias"], strict=True)]
    return sum(h * w for h, w in zip(hidden, p["batched_fc2_w"], strict=True)) + p["batched_fc2_bias"]


def squared_variation(values):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1) / mean**2


def balance_of(options, clean, noisy, ranking):
    """The loss of one layer from logits, as lists (tokens, experts)."""
    quiet, scores = ([torch.stack(row).softmax(0) for row in rows] for rows in (clean, noisy))
    if options.gshard_loss:
        first = [sum(r[0] == e for r in ranking) for e in range(EXPERTS)]
        return EXPERTS / len(clean) ** 2 * sum(sum(s[e] for s in scores) * first[e] for e in range(EXPERTS))
    importance = squared_variation([sum(s[e] for s in quiet) for e in range(EXPERTS)])
    if not options.noise:
        return importance
    deviation = options.noise / EXPERTS
    load = [0.0] * EXPERTS
    for s, row, r in zip(quiet, noisy, ranking, strict=True):
        for e in range(EXPERTS):
            load[e] = load[e] + (1 + torch.erf((s[e] - row[r[options.top_k - 1]]) / deviation / 2**0.5)) / 2
    return (importance + squared_variation(load)) / 2


def by_hand(layer, x, noise):
    """Returns output, share of drops, load and balance loss."""
    o, tokens = layer.options, x.reshape(-1, DIM)
    clean = [logits_of(layer, token) for token in tokens]
    noisy = [[a + o.noise / EXPERTS * b for a, b in zip(*rows, strict=True)] for rows in zip(clean, noise, strict=True)]
    scores = [torch.stack(row).softmax(0) for row in noisy]
    ranking = [sorted(range(EXPERTS), key=lambda e, s=s: -s[e].item()) for s in scores]
    order = sorted(range(len(tokens)), key=lambda t: -scores[t].max().item() if o.prioritized else t)
    load = [sum(r[: o.top_k].count(e) for r in ranking) for e in range(EXPERTS)]
    limit = o.top_k * int(o.capacity_factor * math.ceil(len(tokens) / EXPERTS)) if o.capacity_factor else max(load)
    out, taken, dropped = [torch.zeros(DIM) for _ in tokens], [0] * EXPERTS, 0
    for choice in range(o.top_k):
        for t in order:
            e = ranking[t][choice]
            taken[e] += 1
            if taken[e] > limit:
                dropped += 1
                continue
            gate = scores[t][e]
            if o.normalize_gate and o.top_k > 1:
                gate = gate / sum(scores[t][each] for each in ranking[t][: o.top_k])
            out[t] = out[t] + gate * expert_of(layer, e, tokens[t])
    balance = balance_of(o, clean, noisy, ranking)
    return torch.stack(out).view(x.shape), dropped / len(tokens) / o.top_k, load, balance


@pytest.mark.parametrize("gshard_loss", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("capacity_factor", [0.5, 1.25, 0.0])
@pytest.mark.parametrize("top_k", [1, 2])
def test_outputs_drops_losses_and_gradients_equal_a_loop(
    top_k, capacity_factor, prioritized, cosine, gshard_loss, monkeypatch
):
    layer, x = mixture(
        top_k=top_k,
        capacity_factor=capacity_factor,
        prioritized=prioritized,
        cosine=cosine,
        gshard_loss=gshard_loss,
        normalize_gate=cosine,
    )
    noise, weight = torch.randn(24, EXPERTS), torch.randn(SHAPE)
    monkeypatch.setattr(torch, "randn_like", lambda logits: noise)
    out, dropped, load, balance = by_hand(layer, x, noise)
    variables = {"x": x, **dict(layer.named_parameters())}
    expected = torch.autograd.grad((out * weight).sum() + 3 * balance, list(variables.values()))

    ours = layer(x)
    torch.testing.assert_close(ours, out, atol=1e-5, rtol=1e-5)
    assert layer.statistics.dropped.item() == pytest.approx(dropped, abs=1e-6)
    assert layer.statistics.load.tolist() == load
    assert layer.balance.item() == pytest.approx(balance.item(), rel=1e-5)
    assert capacity_factor == 1.25 or (dropped > 0) == (capacity_factor == 0.5)
    gradients = torch.autograd.grad((ours * weight).sum() + 3 * layer.balance, list(variables.values()))
    for name, mine, theirs in zip(variables, gradients, expected, strict=True):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_evaluation_has_no_noise_and_the_same_capacity(noise):
    layer, x = mixture(capacity_factor=0.5, noise=noise)
    with torch.no_grad():
        out, dropped, load, balance = by_hand(layer.eval(), x, torch.zeros(24, EXPERTS))
        torch.testing.assert_close(layer(x), out, atol=1e-5, rtol=1e-5)
    assert layer.statistics.dropped.item() == pytest.approx(dropped) and dropped > 0
    assert layer.statistics.load.tolist() == load and layer.balance.item() == pytest.approx(balance.item(), rel=1e-5)


def test_an_expert_without_capacity_drops_every_token():
    """int(0.5 * 1) is 0; parameters still get a gradient, of zeros."""
    layer, _ = mixture(capacity_factor=0.5)
    x = torch.randn(1, 1, 3, DIM, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert not out.any() and layer.statistics.dropped.item() == 1 and not x.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in layer._moe_layer["experts"].parameters())


def test_routing_is_in_float32_under_autocast():
    """The same experts as without it, and outputs that differ by the rounding of bfloat16."""
    layer, x = mixture(noise=0.0, capacity_factor=0.0)
    exact, load = layer(x), layer.statistics.load
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert torch.equal(layer.statistics.load, load) and layer.balance.dtype == torch.float32
    error = (mixed.float() - exact).norm() / exact.norm()
    assert 1e-4 < error < 1e-2
    (gradient,) = torch.autograd.grad(mixed.float().sum(), x)
    (expected,) = torch.autograd.grad(exact.sum(), x)
    assert (gradient - expected).norm() < 2e-2 * expected.norm()


def test_dropout_is_between_gelu_and_the_second_layer():
    torch.manual_seed(0)
    experts = Experts(2, 3, 1000, fc2_bias=True, init_std=0.02, dropout=0.5)
    torch.nn.init.ones_(experts.batched_fc1_bias)
    torch.nn.init.zeros_(experts.batched_fc1_w)
    torch.nn.init.ones_(experts.batched_fc2_w)
    tokens = torch.randn(2, 4, 3)
    kept = F.gelu(torch.ones(())).item() * 1000
    assert experts.eval()(tokens).flatten().tolist() == pytest.approx([kept] * 24, rel=1e-5)
    out = experts.train()(tokens)
    assert torch.equal(out[..., 0], out[..., 1]) and out[0, 0, 0] != out[0, 1, 0]  # of hidden channels, per token
    assert out.mean().item() == pytest.approx(kept, rel=0.05)


def test_initial_weights_are_those_of_the_released_models():
    torch.manual_seed(0)
    layer = MoeMlp(32, 64, 8, RoutingOptions(), fc2_bias=False, init_std=0.005)
    state = {name.rpartition(".")[2]: p for name, p in layer.named_parameters()}
    for name in ("batched_fc1_w", "batched_fc2_w"):
        assert state[name].std().item() == pytest.approx(0.005, rel=0.05)
    assert not state["batched_fc1_bias"].any() and not state["batched_fc2_bias"].any()
    assert [name for name, p in state.items() if not p.requires_grad] == ["batched_fc2_bias"]


def test_activation_checkpointing_leaves_the_loss_of_the_first_pass():
    """The second pass would keep the activations of the block alive."""
    results = []
    for recompute in (False, True):
        layer, x = mixture()
        torch.manual_seed(1)
        out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        balance = layer.balance
        (out.sum() + balance).backward()
        assert layer.balance is balance
        results.append([x.grad, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_copy_does_not_carry_the_last_forward_pass():
    layer, x = mixture()
    layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.balance is None and twin.statistics is None and layer.balance is not None
        assert torch.equal(twin.eval()(x), layer.eval()(x))


@pytest.mark.seconds
def test_compiled_it_is_the_same_for_any_number_of_tokens():
    layer, _ = mixture(top_k=2, capacity_factor=0.5, noise=0.0)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 3, 4, DIM, requires_grad=True)
        results = []
        for run in (layer, compiled):
            layer.zero_grad()
            out = run(x)
            (out.square().sum() + layer.balance).backward()
            results.append([out, layer.statistics.dropped, x.grad, *(p.grad for p in layer.parameters())])
            x.grad = None
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()
