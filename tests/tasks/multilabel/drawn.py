"""Made logits and targets of images with several labels."""

import torch

CLASSES, COUNT = 4, 60
NAMES = ("cat", "dog", "emu", "fox")


def drawn(seed=0, count=COUNT):
    """Logits, and targets of which the last class has none."""
    draw = torch.Generator().manual_seed(seed)
    targets = (torch.rand(count, CLASSES, generator=draw) < torch.tensor([0.5, 0.3, 0.1, 0.0])).float()
    return torch.randn(count, CLASSES, generator=draw) + 1.5 * targets, targets
