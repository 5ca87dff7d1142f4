"""The pyramid that every Swin family fills with its blocks: patches, stages, pooled head; timm's vocabulary."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.errors import ModelError
from models.layers import PatchEmbed

# block(dim, heads, window, shift, drop_path) of a family; window and shift in tokens
BlockFactory = Callable[[int, int, int, int, float], nn.Module]


class Stage(nn.Module):
    """Blocks at one resolution, then the merging to the next one."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) -> the stage's own map (B, H, W, C), and the next stage's input."""
        for block in self.blocks:
            recompute = self.grad_checkpointing and self.training
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x, x if self.downsample is None else self.downsample(x)


class SwinBackbone(nn.Module):
    """Hierarchical vision transformer for classification and as a feature pyramid (paper, section 3.1, figure 3).

    Args: block: the family's, one for all stages or one for each; merging: dim -> module between two stages;
    img_size in pixels; window_size in tokens; ape: absolute position embedding.

    Any input size and aspect ratio works. `img_size` only fixes what depends on it at construction: the absolute
    position embedding, and the window of stages whose map is smaller than `window_size`.
    """

    family: ClassVar[str]  # MODEL.TYPE

    def __init__(
        self,
        block: BlockFactory | Sequence[BlockFactory],
        merging: Callable[[int], nn.Module],
        *,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        ape: bool = False,
        patch_norm: bool = True,
    ):
        super().__init__()
        _check_shape(embed_dim, depths, num_heads)
        self.num_classes = num_classes
        self._frozen: list[nn.Module] = []
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, norm=patch_norm)
        side = img_size // patch_size
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, side * side, embed_dim)) if ape else None
        self.pos_drop = nn.Dropout(drop_rate)

        # linear rule: 0 at the first block, drop_path_rate at the last (paper, appendix A2; arXiv 1603.09382)
        rates = iter([drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))])
        self.layers = nn.ModuleList()
        self.feature_info: list[dict[str, int]] = []
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim, window = embed_dim * 2**i, min(window_size, side)
            make = block if callable(block) else block[i]
            blocks = [make(dim, heads, window, (j % 2) * (window // 2), next(rates)) for j in range(depth)]
            self.layers.append(Stage(blocks, merging(dim) if i < len(depths) - 1 else None))
            self.feature_info.append({"num_chs": dim, "reduction": patch_size * 2**i})
            side = (side + 1) // 2

        self.norm = nn.LayerNorm(self.num_features)
        self.head: nn.Module = self._new_head(num_classes)
        self.apply(init_weights)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def _new_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def stages(self) -> list[Stage]:
        """The stages, first to last."""
        return [stage for stage in self.layers if isinstance(stage, Stage)]

    def _stem(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            x = x + resize_position_embedding(self.absolute_pos_embed, x.shape[1], x.shape[2])
        return self.pos_drop(x)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> last map after the final norm (B, h, w, num_features)."""
        x = self._stem(images)
        for stage in self.layers:
            _, x = stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, h, w, C) -> logits (B, num_classes), or the pooled features (B, C)."""
        pooled = x.mean(dim=(1, 2))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self, images: Tensor, indices: Sequence[int] | None = None, norm: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The feature pyramid for detection and segmentation heads.

        Args: images (B, 3, H, W); indices: which stages, None for all; norm: final norm on the last stage's map.
        Returns: the last map after the final norm (B, h, w, C), and one map (B, C_i, H_i, W_i) for each of `indices`;
        channels and strides stand in `feature_info`.
        Raises: ValueError if an index names no stage.
        """
        count = len(self.layers)
        wanted = range(count) if indices is None else [i + count if i < 0 else i for i in indices]
        if not all(0 <= i < count for i in wanted):
            raise ValueError(f"stage indices {list(indices or ())} for a model of {count} stages")
        maps: dict[int, Tensor] = {}
        x = self._stem(images)
        for i, stage in enumerate(self.layers):
            own, x = stage(x)
            maps[i] = self.norm(own) if norm and i == count - 1 else own
        return self.norm(x), [maps[i].permute(0, 3, 1, 2).contiguous() for i in wanted]

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A new head, freshly initialised; none (pooled features) for 0 classes."""
        self.num_classes = num_classes
        self.head = self._new_head(num_classes).to(self.norm.weight.device)
        self.head.apply(init_weights)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        for stage in self.stages():
            stage.grad_checkpointing = enable

    def freeze(self, stages: int | None) -> None:
        """Take the patch embedding and the first `stages` stages out of training; None: everything but the head.

        Frozen parts also run as in evaluation, without dropout and stochastic depth.
        Raises: ModelError if the model has fewer stages.
        """
        if stages is not None and stages > len(self.layers):
            raise ModelError(f"the model has {len(self.layers)} stages, not {stages}: TRAIN.FREEZE: freeze fewer")
        last = len(self.layers) if stages is None else stages
        self._frozen = [
            self.patch_embed,
            self.pos_drop,
            *self.stages()[:last],
            *([self.norm] if stages is None else []),
        ]
        for module in self._frozen:
            module.requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> "SwinBackbone":
        """As torch's, but what is frozen stays in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of the position tables: matrices by shape, offsets by meaning."""
        return {name for name, _ in self.named_parameters() if "position_bias_table" in name or "pos_embed" in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning-rate decay: stem, one per block (or per stage), final norm with the head."""
        blocks: Any = r"^layers\.(\d+)"
        if not coarse:
            # a merging closes its stage, so it counts with the stage's last block
            merging = [(rf"^layers\.{i}\.downsample", (i, len(s.blocks) - 1)) for i, s in enumerate(self.stages())]
            blocks = [(r"^layers\.(\d+)\.blocks\.(\d+)", None), *merging]
        return {"stem": r"^patch_embed|^absolute_pos_embed", "blocks": blocks}


def init_weights(module: nn.Module) -> None:
    """Truncated normal of 0.02 for linear layers, zero biases (released models); convolutions keep torch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resize_position_embedding(embedding: Tensor, height: int, width: int) -> Tensor:
    """(1, side * side, C) -> (1, height, width, C), bicubic where the size differs."""
    side = round(embedding.shape[1] ** 0.5)
    grid = embedding.view(1, side, side, -1)
    if (height, width) == (side, side):
        return grid
    grid = F.interpolate(grid.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1)


def _check_shape(embed_dim: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
    if len(depths) != len(num_heads):
        raise ModelError(f"DEPTHS {list(depths)} and NUM_HEADS {list(num_heads)} differ in length: give one a stage")
    for i, heads in enumerate(num_heads):
        if (embed_dim * 2**i) % heads:
            raise ModelError(f"stage {i} has {embed_dim * 2**i} channels: NUM_HEADS: {heads} heads do not divide them")
