"""Backbone shared by all Swin families: patch embedding, stages, pooled head, with timm's method names."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from yacs.config import CfgNode

from models.layers import PatchEmbed
from models.ops.attend import FORMS
from models.ops.stochastic_depth import BranchMask, draw_masks
from utils.errors import ConfigError, did_you_mean
from utils.preprocessing import Size, image_size

# block(dim, heads, window, shift, drop_path); window and shift in tokens
BlockFactory = Callable[[int, int, int, int, float], nn.Module]


@dataclass(frozen=True, kw_only=True)
class PyramidOptions:
    """Options shared by all Swin families; the defaults are Swin-T's.

    `img_size` in pixels, a side or (height, width), only sizes the absolute position embedding and the windows of
    stages whose map is smaller than `window_size` tokens. `ape`: absolute position embedding; `patch_norm`: norm after
    the patch embedding; `mlp_ratio`: hidden width of an MLP relative to its input; `drop_path_rate`: stochastic depth
    rate of the last block; `init_std`: std of the initial weights of linear layers; `attention`: one of
    `models.ops.attend.FORMS`. `dense`: the backbone of the released detectors and segmenters: images are padded to
    whole patches, every second block shifts even where one window covers the map, windows keep their size on small
    maps, and each stage's output has a norm, `norm0`, `norm1`, ..., in place of the final norm and the head.

    Raises: ConfigError for incompatible sizes.
    """

    SECTION: ClassVar[str] = ""  # key below MODEL in the configuration

    img_size: int | Size = 224
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    ape: bool = False
    patch_norm: bool = True
    init_std: float = 0.02
    attention: str = "auto"
    dense: bool = False

    def __post_init__(self) -> None:
        key, depths, num_heads = f"MODEL.{self.SECTION}.NUM_HEADS", list(self.depths), list(self.num_heads)
        if len(depths) != len(num_heads):
            raise ConfigError(key, f"{num_heads} differs in length from DEPTHS {depths}", "set one number per stage")
        for i, heads in enumerate(num_heads):
            dim = self.embed_dim * 2**i
            if dim % heads:
                raise ConfigError(key, f"{heads} heads do not divide the {dim} channels of stage {i}", "set a divisor")
        if self.attention not in FORMS:
            near = did_you_mean(self.attention, FORMS)
            raise ConfigError("MODEL.ATTENTION", f"unknown form {self.attention!r}", near)
        self._check_patch("DATA.IMG_SIZE", image_size(self.img_size))

    def _check_patch(self, key: str, size: Size) -> None:
        if min(size) < self.patch_size:
            patch = f"MODEL.{self.SECTION}.PATCH_SIZE {self.patch_size}"
            raise ConfigError(key, f"{min(size)} is smaller than a patch", f"set at least {patch}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Self:
        """Returns the options of this family; a key of its section sets the field of that name. Raises: ConfigError."""
        section = cfg.MODEL[cls.SECTION]
        names = {field.name: field.name.upper() for field in fields(cls)}
        given = {name: _as_tuple(section[key]) for name, key in names.items() if key in section}
        options = cls(
            img_size=image_size(cfg.DATA.IMG_SIZE),
            num_classes=cfg.MODEL.NUM_CLASSES,
            drop_rate=cfg.MODEL.DROP_RATE,
            drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
            attention=cfg.MODEL.ATTENTION,
            **given,
        ).with_own_keys(section)
        options.check_sizes(image_size(cfg.TEST.IMG_SIZE))
        return options

    def with_own_keys(self, section: CfgNode) -> Self:
        """Returns the options updated from keys of `section` that are not named like a field."""
        return self

    def check_sizes(self, test_size: Size) -> None:
        """Checks the evaluation size (0: as in training) and the window. Raises: ConfigError if they do not fit."""
        if min(test_size):
            self._check_patch("TEST.IMG_SIZE", test_size)
        height, width = (side // self.patch_size for side in image_size(self.img_size))
        if self.window_size > min(height, width):  # later stages may be smaller: their window is their map
            raise ConfigError(
                f"MODEL.{self.SECTION}.WINDOW_SIZE",
                f"a window of {self.window_size} does not fit the {height}x{width} tokens of the first stage",
                f"set at most {min(height, width)}, or increase DATA.IMG_SIZE",
            )

    def attention_arguments(self) -> dict[str, Any]:
        """Returns the arguments of `WindowAttention` common to all families."""
        return {
            "attn_drop": self.attn_drop_rate,
            "proj_drop": self.drop_rate,
            "form": self.attention,
            "always_shift": self.dense,
        }


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


class Stage(nn.Module):
    """Blocks at one resolution, followed by downsampling to the next one."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.grad_checkpointing = False

    def rates(self) -> list[float]:
        """Returns the drop probability of each branch, two per block; 0 in evaluation."""
        blocks: Any = self.blocks
        return [block.drop_path if self.training else 0.0 for block in blocks for _ in range(2)]

    def forward(self, x: Tensor, branches: Sequence[BranchMask] | None = None) -> tuple[Tensor, Tensor]:
        """Maps (B, H, W, C) to the output of the stage (B, H, W, C) and the input of the next stage.

        Args: branches: samples that keep each branch, two per block; None draws them.
        """
        masks = draw_masks(self.rates(), x.shape[0], x.device) if branches is None else branches
        recompute = self.grad_checkpointing and self.training
        for i, block in enumerate(self.blocks):
            own = masks[2 * i : 2 * i + 2]
            x = checkpoint(block, x, own, use_reentrant=False) if recompute else block(x, own)
        return x, x if self.downsample is None else self.downsample(x)


class SwinBackbone(nn.Module):
    """Hierarchical vision transformer for classification and as a feature pyramid (paper, section 3.1, figure 3).

    Any input size and aspect ratio works.

    Args: options: sizes and rates; block: factory of the family's blocks, one for all stages or one per stage; merging:
    factory of the downsampling between two stages, given dim.
    """

    family: ClassVar[str]  # MODEL.TYPE
    title: ClassVar[str]
    signature: ClassVar[str]  # substring of parameter names, unique to this family
    Options: ClassVar[type[PyramidOptions]]

    def __init__(
        self,
        options: PyramidOptions,
        block: BlockFactory | Sequence[BlockFactory],
        merging: Callable[[int], nn.Module],
    ):
        super().__init__()
        o = self.options = options
        self.num_classes = o.num_classes
        self._frozen: list[nn.Module] = []
        self.num_features = o.embed_dim * 2 ** (len(o.depths) - 1)
        self.patch_embed = PatchEmbed(o.patch_size, o.in_chans, o.embed_dim, norm=o.patch_norm, pad=o.dense)
        height, width = (side // o.patch_size for side in image_size(o.img_size))
        self.grid: Size = (height, width)  # tokens of the absolute position embedding
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, height * width, o.embed_dim)) if o.ape else None
        self.pos_drop = nn.Dropout(o.drop_rate)

        # linear rule: 0 at the first block, drop_path_rate at the last (paper, appendix A2; arXiv 1603.09382)
        count, side = sum(o.depths), min(height, width)
        rates = iter([o.drop_path_rate * i / max(1, count - 1) for i in range(count)])
        self.layers = nn.ModuleList()
        self.feature_info: list[dict[str, int]] = []
        for i, (depth, heads) in enumerate(zip(o.depths, o.num_heads, strict=True)):
            dim, window = o.embed_dim * 2**i, o.window_size if o.dense else min(o.window_size, side)
            make = block if callable(block) else block[i]
            blocks = [make(dim, heads, window, (j % 2) * (window // 2), next(rates)) for j in range(depth)]
            self.layers.append(Stage(blocks, merging(dim) if i < len(o.depths) - 1 else None))
            self.feature_info.append({"num_chs": dim, "reduction": o.patch_size * 2**i})
            side = (side + 1) // 2

        for i, info in enumerate(self.feature_info if o.dense else ()):
            self.add_module(f"norm{i}", nn.LayerNorm(info["num_chs"]))
        self.norm: Any = nn.Identity() if o.dense else nn.LayerNorm(self.num_features)
        self.head: nn.Module = self._new_head(0 if o.dense else o.num_classes)
        self.mask_token: nn.Parameter | None = None  # replaces masked tokens; set by masked image models
        self.apply(partial(init_weights, std=o.init_std))
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=o.init_std)

    def _new_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def stages(self) -> list[Stage]:
        """Returns the stages, first to last."""
        return [stage for stage in self.layers if isinstance(stage, Stage)]

    def _stem(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling():  # windows depend on the size, so each is compiled; the batch stays dynamic
            for side in (2, 3):
                torch._dynamo.mark_static(images, side)
        x = self.patch_embed(images)
        if mask is not None and self.mask_token is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        if self.absolute_pos_embed is not None:
            x = x + resize_position_embedding(self.absolute_pos_embed, self.grid, (x.shape[1], x.shape[2]))
        return self.pos_drop(x)

    def _draw(self, x: Tensor) -> list[tuple[Stage, list[BranchMask]]]:
        """Draws the masks of all branches at once; returns each stage with its masks."""
        rates = [stage.rates() for stage in self.stages()]
        # len(x) would be a constant in an exported model
        masks = iter(draw_masks([rate for own in rates for rate in own], x.shape[0], x.device))
        return [(stage, [next(masks) for _ in own]) for stage, own in zip(self.stages(), rates, strict=True)]

    def forward_features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps images (B, C, H, W) to the last feature map after the final norm, (B, h, w, num_features).

        Args: mask: bool (B, H / patch, W / patch), true for tokens that `mask_token` replaces.
        """
        x = self._stem(images, mask)
        for stage, masks in self._draw(x):
            _, x = stage(x, masks)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps the last feature map (B, h, w, C) to logits (B, num_classes), or to pooled features (B, C)."""
        pooled = x.mean(dim=(1, 2))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self, images: Tensor, indices: Sequence[int] | None = None, norm: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Computes the feature pyramid for detection and segmentation heads.

        Args: images (B, C, H, W); indices: stages to return, None for all; norm: apply the final norm to the last map.
        Returns: the last map after the final norm (B, h, w, C), and one map (B, C_i, H_i, W_i) for each of `indices`,
        normalised by its own norm if the backbone is `dense`; `feature_info` has their channels and strides.
        Raises: ValueError for an index out of range.
        """
        count = len(self.layers)
        wanted = range(count) if indices is None else [i + count if i < 0 else i for i in indices]
        if not all(0 <= i < count for i in wanted):
            raise ValueError(f"stage indices {list(indices or ())} for a model of {count} stages")
        maps: dict[int, Tensor] = {}
        x = self._stem(images)
        for i, (stage, masks) in enumerate(self._draw(x)):
            own, x = stage(x, masks)
            if self.options.dense:
                maps[i] = self.get_submodule(f"norm{i}")(own) if i in wanted else own
            else:
                maps[i] = self.norm(own) if norm and i == count - 1 else own
        return self.norm(x), [maps[i].permute(0, 3, 1, 2).contiguous() for i in wanted]

    def get_classifier(self) -> nn.Module:
        """Returns the linear head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head with a newly initialised one; with 0 classes the model returns pooled features."""
        self.num_classes = num_classes
        self.head = self._new_head(num_classes).to(self.patch_embed.proj.weight.device)
        self.head.apply(partial(init_weights, std=self.options.init_std))

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """Recomputes activations in the backward pass: less memory, about a third more time.

        Args: stages: their indices, None for all. Raises: ConfigError if the model has fewer stages.
        """
        last = len(self.layers) - 1
        wrong = [i for i in stages or () if not 0 <= i <= last]
        if wrong:
            raise ConfigError("TRAIN.CHECKPOINT_STAGES", f"there is no stage {wrong[0]}", f"choose from 0 to {last}")
        for i, stage in enumerate(self.stages()):
            stage.grad_checkpointing = enable and (stages is None or i in stages)

    def freeze(self, stages: int | None) -> None:
        """Freezes the patch embedding and the first `stages` stages; None freezes everything but the head.

        Frozen parts also stay in evaluation mode, with dropout and stochastic depth disabled.
        Raises: ConfigError if the model has fewer stages.
        """
        if stages is not None and stages > len(self.layers):
            raise ConfigError("TRAIN.FREEZE", f"the model has {len(self.layers)} stages, not {stages}", "freeze fewer")
        last = len(self.layers) if stages is None else stages
        norms = [self.norm, *(module for name, module in self.named_children() if re.fullmatch(r"norm\d+", name))]
        self._frozen = [self.patch_embed, self.pos_drop, *self.layers[:last], *(norms if stages is None else [])]
        for module in self._frozen:
            module.requires_grad_(False)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> "SwinBackbone":
        """Sets the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Returns the names of position tables, which are 2-D but act as biases."""
        return {name for name, _ in self.named_parameters() if "position_bias_table" in name or "pos_embed" in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's groups for layer-wise learning-rate decay: stem, blocks (or stages), head.

        Patch merging is grouped with the first block of the next stage, the final norm with the last block.
        """
        first = (lambda stage: (stage,)) if coarse else (lambda stage: (stage, 0))
        blocks: list[Any] = [(rf"^layers\.{i}\.downsample", first(i + 1)) for i in range(len(self.layers))]
        blocks += [(r"^layers\.(\d+)" if coarse else r"^layers\.(\d+)\.blocks\.(\d+)", None)]
        blocks += [] if coarse else [(r"^norm\.", _WITH_PREVIOUS)]
        return {"stem": r"^patch_embed|^absolute_pos_embed", "blocks": blocks}

    def simmim_group_matcher(self) -> dict[str, Any]:
        """Returns the groups of layer-wise learning-rate decay as in SimMIM's fine-tuning: stem, blocks; then the rest.

        Patch merging is grouped with the last block before it, the absolute position embedding with the head.
        """
        merging = [(rf"^layers\.{i}\.downsample", (i, len(s.blocks) - 1)) for i, s in enumerate(self.stages())]
        return {"stem": r"^patch_embed", "blocks": [(r"^layers\.(\d+)\.blocks\.(\d+)", None), *merging]}


_WITH_PREVIOUS = (99999,)  # timm's MATCH_PREV_GROUP


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Initialises linear layers as the released models were: truncated normal, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resize_position_embedding(embedding: Tensor, grid: Size, size: Size) -> Tensor:
    """Resizes (1, h * w, C) from `grid` (h, w) to (1, *size, C); bicubic if the sizes differ."""
    table = embedding.view(1, *grid, -1)
    if grid == size:
        return table
    return F.interpolate(table.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
