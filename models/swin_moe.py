"""Swin-MoE: V1's blocks with V2's continuous position bias, and experts in place of some MLPs (arXiv 2206.03382)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from models.attention import ContinuousPositionBias, WindowAttention
from models.layers import Mlp, PatchMerging
from models.moe.mixture import MoeMlp
from models.moe.routing import RoutingOptions
from models.ops.layer_norm import LayerNorm
from models.ops.stochastic_depth import BranchMask, add_branch, as_factors
from models.swin_v2 import ContinuousBackbone, ContinuousOptions
from utils.errors import ConfigError, count

NO_DECAY = (
    *("cpb_mlp", "relative_position_bias_table", "absolute_pos_embed"),
    *("fc1_bias", "fc2_bias", "temperature", "cosine_projector", "sim_matrix"),
)


@dataclass(frozen=True, kw_only=True)
class SwinMoeOptions(ContinuousOptions):
    """`qkv_bias`, `qk_scale`: as in V1; `mlp_fc2_bias`: a bias on the second layer of every MLP; `moe_blocks`: blocks
    with experts per stage, empty or -1: none; `num_experts`: experts per block; `num_local_experts`: placement on ranks
    (see `Placement.of`); `moe_drop`: dropout of the experts; `aux_loss_weight`: weight of the balance loss."""

    SECTION: ClassVar[str] = "SWIN_MOE"

    qkv_bias: bool = True
    qk_scale: float | None = None
    mlp_fc2_bias: bool = True
    moe_blocks: tuple[tuple[int, ...], ...] = ()
    num_experts: int = 1
    num_local_experts: int = 1
    moe_drop: float = 0.0
    aux_loss_weight: float = 0.01
    routing: RoutingOptions = field(default_factory=RoutingOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        depths = [*self.depths, *[0] * len(self.moe_blocks)]
        for i, (blocks, depth) in enumerate(zip(self.moe_blocks, depths, strict=False)):
            wrong = [j for j in blocks if not -1 <= j < depth]
            if wrong:
                raise ConfigError(
                    "MODEL.SWIN_MOE.MOE_BLOCKS",
                    f"block {wrong[0]} is out of range for stage {i} ({count(depth, 'block')})",
                    "count blocks from 0; -1 means none",
                )
        if any(self.blocks_with_experts(i) for i in range(len(self.depths))):
            self.routing.check(self.num_experts)

    def blocks_with_experts(self, stage: int) -> set[int]:
        """Returns the indices of the blocks of a stage whose MLP is a mixture of experts."""
        return set(self.moe_blocks[stage]) - {-1} if stage < len(self.moe_blocks) else set()

    def with_own_keys(self, section: CfgNode) -> Self:
        return replace(
            self,
            num_experts=section.NUM_EXPERTS or 1,  # 0 only without experts, see configs/loading.py
            routing=RoutingOptions(
                top_k=section.TOP_VALUE,
                capacity_factor=section.CAPACITY_FACTOR,
                cosine=section.COSINE_ROUTER,
                cosine_dim=section.COSINE_ROUTER_DIM,
                init_temperature=section.COSINE_ROUTER_INIT_T,
                normalize_gate=section.NORMALIZE_GATE,
                prioritized=section.USE_BPR,
                gshard_loss=section.IS_GSHARD_LOSS,
                noise=section.GATE_NOISE,
            ),
        )


class ContinuousWindowAttention(ContinuousPositionBias, WindowAttention):
    """V1's attention with V2's position bias, without its bound of 16."""


class SwinMoeBlock(nn.Module):
    """V1's block, with a mixture of experts as its MLP if `experts`."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shift: int,
        drop_path: float,
        *,
        pretrained_window: int,
        experts: bool,
        options: SwinMoeOptions,
    ):
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = LayerNorm(dim)
        self.attn = ContinuousWindowAttention(
            *(dim, heads, window, shift),
            qkv_bias=options.qkv_bias,
            qk_scale=options.qk_scale,
            **options.attention_arguments(),
        )
        self.attn.set_pretrained_window(pretrained_window)
        self.norm2 = (nn.LayerNorm if experts else LayerNorm)(dim)  # the router scores tokens in float32
        hidden = int(dim * options.mlp_ratio)
        self.mlp: nn.Module = (
            MoeMlp(
                dim,
                hidden,
                options.num_experts,
                options.routing,
                fc2_bias=options.mlp_fc2_bias,
                init_std=options.init_std,
                dropout=options.moe_drop,
            )
            if experts
            else Mlp(dim, hidden, options.drop_rate, fc2_bias=options.mlp_fc2_bias)
        )

    def forward(self, x: Tensor, branches: Sequence[BranchMask] = (None, None)) -> Tensor:
        """Maps (B, H, W, C) to the same shape; `branches`: samples that keep each branch."""
        x = add_branch(x, lambda x: self.attn(self.norm1(x)), branches[0])
        # experts process the whole batch: capacity and balance loss count all its tokens, equally many on every rank
        mask = as_factors(branches[1], x) if isinstance(self.mlp, MoeMlp) else branches[1]
        return add_branch(x, lambda x: self.mlp(self.norm2(x)), mask)


class SwinMoe(ContinuousBackbone):
    """Swin-MoE-S/B and their dense baselines; parameter names match the released weights."""

    # V2 shares the signature but is tested first
    family, title, signature = "swin_moe", "Swin-MoE", "cpb_mlp"
    Options = SwinMoeOptions

    def __init__(self, options: SwinMoeOptions | None = None):
        own = options or SwinMoeOptions()
        self.aux_loss_weight = own.aux_loss_weight
        super().__init__(own, [_blocks(own, stage) for stage in range(len(own.depths))], PatchMerging)

    def expert_layers(self) -> list[MoeMlp]:
        """Returns the mixtures of experts, first to last."""
        return [module for module in self.modules() if isinstance(module, MoeMlp)]

    def balance_loss(self) -> Tensor:
        """Returns the weighted sum of the balance losses of the last forward pass, a scalar to add to the loss."""
        losses = [layer.balance for layer in self.expert_layers() if layer.balance is not None]
        return self.aux_loss_weight * torch.stack(losses).sum() if losses else self.norm.weight.new_zeros(())

    def routing_statistics(self) -> dict[str, Tensor]:
        """Returns routing statistics of the last forward pass; empty without experts.

        Returns: "dropped": fraction of assignments beyond the capacity, a scalar; "load": tokens per expert, int64
        (layers, experts).
        """
        found = [layer.statistics for layer in self.expert_layers() if layer.statistics is not None]
        if not found:
            return {}
        load = torch.stack([each.load for each in found])
        dropped = torch.stack([each.dropped for each in found])
        return {"dropped": (dropped * load.sum(1)).sum() / load.sum(), "load": load}

    def no_weight_decay(self) -> set[str]:
        """Returns the names of position biases and embeddings, expert biases and parameters of the cosine router."""
        return {name for name, _ in self.named_parameters() if any(word in name for word in NO_DECAY)}


def _blocks(options: SwinMoeOptions, stage: int) -> Callable[..., nn.Module]:
    """Returns the factory of the blocks of a stage, called first to last."""
    with_experts = iter([j in options.blocks_with_experts(stage) for j in range(options.depths[stage])])

    def block(*sizes: int | float, pretrained_window: int) -> nn.Module:
        experts = next(with_experts)
        return SwinMoeBlock(*sizes, pretrained_window=pretrained_window, experts=experts, options=options)  # type: ignore

    return block
