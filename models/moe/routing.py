"""Routing of a sparse mixture of experts: expert choice, gates, balance losses, capacity.

Sources: GShard (arXiv 2006.16668), V-MoE with batch prioritised routing (arXiv 2106.05974), the cosine router of
arXiv 2204.09179, and the settings of the released Swin-MoE (arXiv 2206.03382).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ops.linear import no_autocast
from utils.errors import ConfigError

MAX_SCALE = 100.0  # bounds the cosine router's temperature by 0.01
EPSILON = 1e-10  # added to squared means, which may be 0


@dataclass(frozen=True, kw_only=True)
class RoutingOptions:
    """Settings of the router; the defaults are the released models'.

    `top_k`: experts per token; `capacity_factor`: capacity of an expert relative to an even distribution, 0: unlimited;
    `cosine`, `cosine_dim`, `init_temperature`: route by cosine similarity in that many channels; `normalize_gate`:
    gates of a token sum to 1; `prioritized`: highest scores first instead of batch order;
    `gshard_loss`: GShard's balance loss instead of load and importance; `noise`: standard deviation of the noise on the
    training logits, times the number of experts.
    """

    top_k: int = 1
    capacity_factor: float = 1.25
    cosine: bool = False
    cosine_dim: int = 256
    init_temperature: float = 0.5
    normalize_gate: bool = False
    prioritized: bool = True
    gshard_loss: bool = False
    noise: float = 1.0

    def check(self, experts: int) -> None:
        """Raises: ConfigError if there are fewer experts than `top_k`."""
        if experts < self.top_k:
            problem = f"a token cannot choose {self.top_k} of {experts} experts"
            raise ConfigError("MODEL.SWIN_MOE.TOP_VALUE", problem, f"set at most {experts}")


class Choice(NamedTuple):
    """The experts that T tokens chose: `experts` int64 (T, k), best first; `gates` float32 (T, k), the weights of their
    outputs; `scores` (T,) of the best; `balance`, the layer's balance loss, a scalar."""

    experts: Tensor
    gates: Tensor
    scores: Tensor
    balance: Tensor


class LinearRouter(nn.Module):
    """Scores experts by a linear layer without bias, in float32."""

    def __init__(self, dim: int, experts: int):
        super().__init__()
        self.wg = nn.Linear(dim, experts, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps (T, C) to float32 logits (T, experts)."""
        with no_autocast(tokens):
            return F.linear(tokens.float(), self.wg.weight.float())


class CosineRouter(nn.Module):
    """Scores experts by the cosine between a projected token and an embedding of each expert, in float32."""

    def __init__(self, dim: int, experts: int, channels: int, init_temperature: float):
        super().__init__()
        self.cosine_projector = nn.Linear(dim, channels)
        self.sim_matrix = nn.Parameter(torch.empty(channels, experts).normal_(std=0.01))
        self.temperature = nn.Parameter(torch.full((1,), math.log(1 / init_temperature)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps (T, C) to float32 logits (T, experts)."""
        projector = self.cosine_projector
        with no_autocast(tokens):
            projected = F.linear(tokens.float(), projector.weight.float(), projector.bias.float())
            similarity = F.normalize(projected, dim=1) @ F.normalize(self.sim_matrix.float(), dim=0)
            return similarity * self.temperature.float().clamp(max=math.log(MAX_SCALE)).exp()


def new_router(dim: int, experts: int, options: RoutingOptions) -> nn.Module:
    """Builds a cosine or linear router."""
    if options.cosine:
        return CosineRouter(dim, experts, options.cosine_dim, options.init_temperature)
    return LinearRouter(dim, experts)


def choose(logits: Tensor, options: RoutingOptions, training: bool) -> Choice:
    """Chooses the experts of every token by the softmax of its logits (T, experts), with noise in training."""
    deviation = options.noise / logits.shape[1]
    noisy = logits + deviation * torch.randn_like(logits) if training and deviation else logits
    scores = noisy.softmax(dim=1)
    gates, experts = scores.topk(options.top_k, dim=1)
    if options.gshard_loss:
        balance = gshard_loss(scores, experts[:, 0])
    else:
        balance = load_importance_loss(logits.softmax(dim=1), noisy.gather(1, experts[:, -1:]), deviation)
    best = gates[:, 0].detach()
    if options.normalize_gate and options.top_k > 1:
        gates = gates / gates.sum(dim=1, keepdim=True).clamp(min=torch.finfo(gates.dtype).eps)
    return Choice(experts, gates, best, balance)


def gshard_loss(scores: Tensor, first: Tensor) -> Tensor:
    """Returns GShard's balance loss: 1 for an even distribution, up to the number of experts.

    Args: scores (T, experts) of the softmax; first int64 (T,), the expert of each token's first choice.
    """
    tokens, experts = scores.shape
    return experts / tokens**2 * (scores.sum(0) * count(first, experts)).sum()


def load_importance_loss(scores: Tensor, threshold: Tensor, deviation: float) -> Tensor:
    """Returns half the sum of two squared coefficients of variation over the experts (arXiv 2106.05974, appendix A).

    Importance is the sum of the scores of an expert; load is the expected number of tokens that would choose it if the
    noise were redrawn. As in the released code, softmax scores are compared with a logit. Without noise the load is a
    step function without a gradient, so the loss is the importance alone.
    Args: scores (T, experts) without noise; threshold (T, 1), the noisy logit of the last choice; deviation: std
    of the noise.
    """
    importance = _variation(scores.sum(0))
    if not deviation:
        return importance
    load = torch.special.ndtr((scores - threshold) / deviation).sum(0)
    return (importance + _variation(load)) / 2


def _variation(totals: Tensor) -> Tensor:
    """Returns the squared coefficient of variation of (experts,), with the unbiased variance; 0 for one expert."""
    return totals.var(correction=min(1, len(totals) - 1)) / (totals.mean() ** 2 + EPSILON)


def count(chosen: Tensor, experts: int) -> Tensor:
    """Counts how often each expert occurs: int64 of any shape -> int64 (experts,)."""
    chosen = chosen.flatten()  # bincount would synchronise with the GPU
    return chosen.new_zeros(experts).scatter_add(0, chosen, torch.ones_like(chosen))


def places(choice: Choice, load: Tensor, prioritized: bool) -> Tensor:
    """Ranks the tokens of each expert by precedence.

    All first choices precede the second ones; ties follow the batch order or, if `prioritized`, the descending best
    score. Args: load (experts,), the number of tokens that chose each expert.
    Returns: int64 (k, T), from 0.
    """
    order = choice.scores.argsort(descending=True, stable=True) if prioritized else None
    queue = (choice.experts if order is None else choice.experts[order]).T.flatten()  # (k * T,)
    by_expert = queue.argsort(stable=True)
    before = (load.cumsum(0) - load)[queue[by_expert]]
    numbers = torch.arange(len(queue), device=queue.device) - before
    place = torch.empty_like(queue).scatter(0, by_expert, numbers).view(-1, len(choice.experts))
    return place if order is None else torch.empty_like(place).scatter(1, order.expand_as(place), place)


def capacity(tokens: int, load: Tensor, options: RoutingOptions) -> int:
    """Returns the capacity of each expert, in tokens.

    Args: tokens: number on this rank; load (experts,), the number of tokens that chose each expert.
    """
    experts = len(load)
    if options.capacity_factor:
        return options.top_k * int(options.capacity_factor * (-(-tokens // experts)))
    if load.is_meta:  # FLOP counting: assume an even distribution
        return -(-options.top_k * tokens // experts)
    if torch.compiler.is_compiling():  # shapes must not depend on values; no expert is chosen twice by a token
        return tokens
    return int(load.max())
