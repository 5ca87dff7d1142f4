"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) on batches, by timm."""

from dataclasses import dataclass

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor
from yacs.config import CfgNode

from utils.errors import ConfigError


@dataclass(frozen=True)
class MixingOptions:
    """`mixup`, `cutmix`: alphas, 0: off; `minmax`: sides of the CutMix box relative to the image; enables CutMix;
    `prob`, `switch_prob`, `mode`: as in timm."""

    mixup: float
    cutmix: float
    minmax: tuple[float, ...] | None
    prob: float
    switch_prob: float
    mode: str
    label_smoothing: float

    @staticmethod
    def from_config(cfg: CfgNode) -> "MixingOptions":
        aug = cfg.AUG
        return MixingOptions(
            mixup=aug.MIXUP,
            cutmix=aug.CUTMIX,
            minmax=tuple(aug.CUTMIX_MINMAX) if aug.CUTMIX_MINMAX else None,
            prob=aug.MIXUP_PROB,
            switch_prob=aug.MIXUP_SWITCH_PROB,
            mode=aug.MIXUP_MODE,
            label_smoothing=cfg.MODEL.LABEL_SMOOTHING,
        )


class Mixing(Mixup):
    """timm's Mixup for any batch size: in an odd batch the middle sample is mixed with itself.

    Draws from numpy's global generator, which the loader seeds for every micro-batch.
    """

    def _mix_pair(self, x: Tensor) -> Tensor:
        lam = super()._mix_pair(x)
        half = len(x) // 2
        middle = lam.new_ones(len(x) - 2 * half, 1)
        return torch.cat([lam[:half], middle, lam[half:]])

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes images (B, C, H, W) in place; targets int64 (B,) become float32 (B, classes), rows summing to 1."""
        mix = {"elem": self._mix_elem, "pair": self._mix_pair, "batch": self._mix_batch}[self.mode]
        return images, mixup_target(targets, self.num_classes, mix(images), self.label_smoothing)


def build_mixing(
    classes: int, options: MixingOptions | None, size: tuple[int, int], kind: type[Mixing] = Mixing
) -> Mixing | None:
    """Returns the configured mixing, or None. Args: classes: number of classes; size: image size in pixels.

    Raises: ConfigError if the range of box sides contains no whole pixel.
    """
    if options is None or (options.mixup <= 0 and options.cutmix <= 0 and options.minmax is None):
        return None
    if options.minmax is not None and any(int(s * options.minmax[0]) >= int(s * options.minmax[1]) for s in size):
        low, high = options.minmax
        problem = f"no box between {low:g} and {high:g} of {size[0]}x{size[1]} pixels"
        raise ConfigError("AUG.CUTMIX_MINMAX", problem, "set the two further apart")
    return kind(
        options.mixup,
        options.cutmix,
        options.minmax,
        num_classes=classes,
        label_smoothing=options.label_smoothing,
        prob=options.prob,
        switch_prob=options.switch_prob,
        mode=options.mode,
    )
