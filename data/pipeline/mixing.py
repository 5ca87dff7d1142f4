"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) on a batch, by timm."""

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor


class Mixing(Mixup):
    """timm's Mixup for batches of any size: in an odd batch the middle sample is its own partner.

    Draws come from numpy's global generator, which the loader seeds for every micro-batch.
    """

    def _mix_pair(self, x: Tensor) -> Tensor:
        lam = super()._mix_pair(x)
        half = len(x) // 2
        middle = lam.new_ones(len(x) - 2 * half, 1)
        return torch.cat([lam[:half], middle, lam[half:]])

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), int64 (B,) -> images mixed in place, float32 targets (B, classes) whose rows sum to 1."""
        mix = {"elem": self._mix_elem, "pair": self._mix_pair, "batch": self._mix_batch}[self.mode]
        return images, mixup_target(targets, self.num_classes, mix(images), self.label_smoothing)


def build_mixing(
    classes: int, *, mixup: float, cutmix: float, minmax: list[float] | None, label_smoothing: float, when: dict
) -> Mixing | None:
    """The mixing of a recipe, or None where it has none.

    Args: classes of the data; mixup, cutmix: alphas, 0 for off; minmax: sides of the cutmix box over the image's (turns
    cutmix on); when: prob, switch_prob, mode as timm names them.
    """
    if mixup <= 0 and cutmix <= 0 and minmax is None:
        return None
    return Mixing(mixup, cutmix, minmax, num_classes=classes, label_smoothing=label_smoothing, **when)
