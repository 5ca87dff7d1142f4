"""Sparse mixture of experts that replaces the MLP of a block (arXiv 2206.03382)."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.moe.routing import RoutingOptions, capacity, choose, count, new_router, places
from models.ops.linear import as_autocast
from utils.distributed.experts import ShardedExperts, all_to_all, group_maximum
from utils.eval_cache import derived


class Statistics(NamedTuple):
    """Routing of a batch: `dropped`, the fraction of assignments beyond the capacity, a scalar; `load`, the number of
    tokens that chose each expert, int64 (experts,)."""

    dropped: Tensor
    load: Tensor


class Experts(ShardedExperts):
    """MLPs whose weights are stacked, so that a batched matrix product applies all of them at once."""

    def __init__(self, experts: int, dim: int, hidden: int, *, fc2_bias: bool, init_std: float, dropout: float):
        super().__init__(experts)
        self.dropout = dropout
        self.batched_fc1_w = nn.Parameter(torch.empty(experts, hidden, dim))
        self.batched_fc2_w = nn.Parameter(torch.empty(experts, hidden, dim))
        self.batched_fc1_bias = nn.Parameter(torch.zeros(experts, hidden))
        # zero if `fc2_bias` is off, but stored in files
        self.batched_fc2_bias = nn.Parameter(torch.zeros(experts, dim), requires_grad=fc2_bias)
        for weight in (self.batched_fc1_w, self.batched_fc2_w):
            nn.init.trunc_normal_(weight, std=init_std)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps the tokens of every expert (experts, n, C) to the same shape, on whichever ranks the experts are."""
        return self._send(tokens) if self.is_remote else self._mlp(tokens)

    def _send(self, tokens: Tensor) -> Tensor:
        """Computes on the ranks that hold the experts; n must be equal on all ranks of the group."""
        placement, (_, n, dim) = self.placement, tokens.shape
        ranks, local = placement.group_size, placement.local_units
        units = tokens.repeat_interleave(placement.slices, 0) if placement.slices > 1 else tokens
        received = all_to_all(units, placement).view(ranks, local, n, dim)
        out = self._mlp(received.transpose(0, 1).reshape(local, ranks * n, dim))
        returned = all_to_all(out.view(local, ranks, n, dim).transpose(0, 1).flatten(0, 1), placement)
        return returned.view(placement.experts, -1, n, dim).sum(1) if placement.slices > 1 else returned

    def _mlp(self, tokens: Tensor) -> Tensor:
        """Applies the local units: (units, n, C) -> (units, n, C)."""
        weights = {name: self._cast(weight, tokens.dtype) for name, weight in self.named_parameters(recurse=False)}
        fc1_bias, fc2_bias = weights["batched_fc1_bias"], weights["batched_fc2_bias"]
        if self.is_remote and self.placement.slices > 1:  # only the first slice adds the bias
            units = torch.arange(len(fc2_bias), device=fc2_bias.device) + self.placement.first_unit
            fc2_bias = fc2_bias * (units % self.placement.slices == 0)[:, None]
        hidden = torch.baddbmm(fc1_bias[:, None], tokens, weights["batched_fc1_w"].transpose(1, 2))
        hidden = F.dropout(F.gelu(hidden), self.dropout, self.training)
        return torch.baddbmm(fc2_bias[:, None], hidden, weights["batched_fc2_w"])

    @staticmethod
    def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
        return weight if weight.dtype == dtype else derived(lambda: weight.to(dtype), weight)


class MoeMlp(nn.Module):
    """Routes every token of a batch to the experts that score highest for it, and sums their weighted outputs.

    Tokens beyond the capacity of an expert contribute 0, in evaluation too. After a forward pass, `balance` is the
    unweighted balance loss, part of the graph, and `statistics` describes the routing. Parameter names match the
    released files.
    """

    balance: Tensor | None
    statistics: Statistics | None

    def __init__(
        self,
        dim: int,
        hidden: int,
        experts: int,
        options: RoutingOptions,
        *,
        fc2_bias: bool = True,
        init_std: float = 0.02,
        dropout: float = 0.0,
    ):
        super().__init__()
        options.check(experts)
        self.options, self.balance, self.statistics = options, None, None
        self.experts = experts
        mlps = Experts(experts, dim, hidden, fc2_bias=fc2_bias, init_std=init_std, dropout=dropout)
        gates = nn.ModuleList([new_router(dim, experts, options)])
        self._moe_layer = nn.ModuleDict({"experts": mlps, "gates": gates})

    def __getstate__(self) -> dict[str, Any]:
        """Drops the results of the last forward pass: tensors of a graph cannot be copied."""
        return {**self.__dict__, "balance": None, "statistics": None}

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        layer: Any = self._moe_layer
        tokens = x.flatten(0, -2)  # (T, C)
        choice = choose(layer["gates"][0](tokens), self.options, self.training)
        load = count(choice.experts, self.experts)
        place = places(choice, load, self.options.prioritized)  # (k, T)
        limit = capacity(len(tokens), load, self.options)
        kept = place < limit
        if not _is_recomputing():
            self.balance = choice.balance
            self.statistics = Statistics(1 - kept.float().mean(), load)

        mlps = layer["experts"]
        # buffer rows per expert; ranks exchange equal parts, but their last batches may differ in size
        rows = max(1, group_maximum(limit, mlps.placement) if mlps.is_remote else limit)
        slots = torch.where(kept, choice.experts.T * rows + place, self.experts * rows).flatten()  # (k * T,)
        sources = _inverse(slots, self.experts * rows)
        token = torch.where(sources < len(slots), sources % len(tokens), len(tokens))
        buffer = _move_rows(as_autocast(tokens), token, slots)
        out = mlps(buffer.view(self.experts, rows, -1)).flatten(0, 1)
        out = _move_rows(out, slots, sources).view(*place.shape, -1)  # (k, T, C)
        return (choice.gates.T[..., None] * out).sum(0).view(x.shape)


def _is_recomputing() -> bool:
    """Returns whether activation checkpointing is recomputing: results kept then would keep activations alive."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _inverse(slots: Tensor, size: int) -> Tensor:
    """Returns the assignment in each row of a buffer: int64 (size,), the number of assignments for an empty row.

    Args: slots int64 (assignments,), the row of each, or `size` for none; rows are distinct.
    """
    rows = slots.new_full((size + 1,), len(slots))
    return rows.scatter(0, slots, torch.arange(len(slots), device=slots.device))[:-1]


def _move_rows(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Gathers rows: `_rows` with a backward pass that is a gather too.

    Args: x (n, C); index int64 (m,); inverse int64 (k * n,), the row of copy j of row i is inverse[j * n + i], m if
    dropped.
    """
    return _rows(x, index) if torch.compiler.is_compiling() else _MoveRows.apply(x, index, inverse)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Returns x[index], with zeros where the index is the number of rows."""
    last = len(x) - 1
    return x.index_select(0, index.clamp(max=last)).masked_fill((index > last)[:, None], 0)


class _MoveRows(torch.autograd.Function):
    """index_select with a gather as backward pass; the built-in one zero-fills and adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.count = len(x)
        return _rows(x, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = _rows(gradient, inverse).view(-1, ctx.count, gradient.shape[1])  # one for each copy
        return rows.sum(0) if len(rows) > 1 else rows[0], None, None
