"""Fine-tunes a model by the default options of timm's train.py, with timm's transforms, optimizer and schedule."""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.layers import trunc_normal_
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from scripts.open_model import open_model

EPOCHS, WARMUP_EPOCHS, BATCH, RATE_OF_256 = 300, 5, 128, 0.1
EVALUATED = 3  # epochs from an evaluation to the next


class Cached(Dataset[tuple[Tensor, int]]):
    """A folder of images, decoded once."""

    def __init__(self, folder: Path, size: int, train: bool):
        samples = ImageFolder(str(folder)).samples
        self._images = [(Image.open(path).convert("RGB"), label) for path, label in samples]
        self._transform = create_transform(size, train, interpolation="random" if train else "bicubic")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image, label = self._images[i]
        return self._transform(image), label


def finetune(weights: Path, data: Path, seed: int, epochs: int = EPOCHS) -> float:
    """Returns the best top-1 on the validation split, %."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    opened = open_model(str(weights))
    size = opened.size[0]
    train, val = (Cached(data / split, size, train=split == "train") for split in ("train", "val"))
    model = _with_new_head(opened.model, len(ImageFolder(str(data / "train")).classes)).train()
    batches = DataLoader(train, min(BATCH, len(train)), shuffle=True, drop_last=True)
    rate = RATE_OF_256 * (batches.batch_size or 1) / 256
    optimizer = create_optimizer_v2(model, "sgd", lr=rate, weight_decay=2e-5, momentum=0.9)
    schedule, epochs = create_scheduler_v2(
        optimizer, num_epochs=epochs, warmup_epochs=WARMUP_EPOCHS, updates_per_epoch=len(batches)
    )
    loss, best = LabelSmoothingCrossEntropy(0.1), 0.0
    for epoch in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
        schedule.step(epoch + 1)
        if epoch % EVALUATED == EVALUATED - 1 or epoch == epochs - 1:
            best = max(best, _top1(model, val))
    return best


def _with_new_head(model: nn.Module, classes: int) -> nn.Module:
    head = nn.Linear(model.head.in_features, classes)  # type: ignore[union-attr,arg-type]
    trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    model.head = head
    return model


def _top1(model: nn.Module, val: Cached) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in DataLoader(val, BATCH))
    model.train()
    return 100 * right / len(val)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--weights", "--data", "--json"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    top1 = finetune(options.weights, options.data, options.seed, options.epochs)
    options.json.write_text(json.dumps({"top1": top1}))
