"""Targets of images with any number of labels, and their mixtures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.pipeline.sample import Collated, Sample, stack
from tasks.classification.mixing import Mixing


class StackSets:
    """Stacks images, and sets of labels as float32 (B, classes), 1 for a label. Args: classes: their number."""

    def __init__(self, classes: int):
        self._classes = classes

    def __call__(self, samples: Sequence[Sample]) -> Collated:
        collated = stack([sample._replace(target=None) for sample in samples])
        sets = [sample.target for sample in samples]
        if any(each is None for each in sets):
            return collated
        targets = torch.zeros(len(sets), self._classes)
        for row, labels in zip(targets, sets, strict=True):
            row[list(labels)] = 1
        return Collated(collated.images, targets, collated.erased)


class SetMixing(Mixing):
    """Mixup and CutMix of images with several labels: the sets are blended in proportion."""

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes images (B, C, H, W) in place, and targets float32 (B, classes)."""
        mix = {"elem": self._mix_elem, "pair": self._mix_pair, "batch": self._mix_batch}[self.mode]
        share = mix(images)
        return images, targets * share + targets.flip(0) * (1 - share)
