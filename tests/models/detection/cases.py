"""Small detectors with reproducible weights, images and objects, which tests and the comparison with mmdetection share.

numpy's RandomState is frozen, so the numbers do not depend on versions.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from models.detection.detector import DETECTORS, Detector
from models.detection.instances import Frame, Objects
from models.registry import build_model

CLASSES, CHANNELS, WIDTH = 5, 16, 32
BACKBONE = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 7, "drop_path_rate": 0.0}
FRAMES = [Frame((101, 150), (75, 112)), Frame((160, 128), (160, 128)), Frame((250, 310), (507, 620))]
GAINS = {"rpn_cls": 0.8, "rpn_reg": 0.15, "fc_cls": 1.3, "fc_reg": 0.6}  # scores vary without saturating
# sizes of the resized images of a batch, and the number of objects in each
BATCHES = {"objects": (((101, 150), 3), ((160, 128), 2)), "one without": (((101, 150), 0), ((96, 128), 4)),
           "none": (((101, 150), 0), ((96, 128), 0))}  # fmt: skip


def detector(name: str, **more) -> Detector:
    """Args: name: a key of DETECTORS; more: fields of DetectorOptions."""
    options = replace(DETECTORS[name], channels=CHANNELS, **more)
    options = replace(options, roi=replace(options.roi, head=replace(options.roi.head, width=WIDTH)))
    return seeded(Detector(build_model("swin", num_classes=0, dense=True, **BACKBONE), CLASSES, options)).eval()


def seeded(model: nn.Module) -> nn.Module:
    """Gives every part of a model weights that affect its outputs, and batch norms statistics."""
    random = np.random.RandomState(0)
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        noise = torch.tensor(random.standard_normal(tuple(value.shape)), dtype=torch.float32)
        if "running_var" in name:
            noise = noise.square() + 0.5
        elif "table" in name:
            noise = noise * 0.5
        elif value.ndim == 1:
            ones = name.endswith("weight")  # of norms
            noise = noise * 0.1 + float(ones)
        else:
            gain = next((GAINS[part] for part in GAINS if part in name), 1.2)
            noise = noise * gain / value[0].numel() ** 0.5
        value.copy_(noise)
    return model


def padded(*sizes: tuple[int, int], seed: int = 1) -> torch.Tensor:
    """Returns a batch of random images, zero outside of each one's size, at multiples of 32."""
    random = np.random.RandomState(seed)
    height, width = (-(-max(side) // 32) * 32 for side in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width)
    for image, size in zip(images, sizes, strict=True):
        image[:, : size[0], : size[1]] = torch.tensor(random.standard_normal((3, *size)), dtype=torch.float32)
    return images


def objects(size: tuple[int, int], count: int, within: tuple[int, int], seed: int = 2) -> Objects:
    """Returns objects with elliptic masks. Args: within: size of the masks."""
    random, (height, width) = np.random.RandomState(seed + count), size
    side = random.uniform(0.15, 0.6, (count, 2)) * (width, height)
    corner = random.uniform(0, 1, (count, 2)) * ((width, height) - side)
    boxes = torch.tensor(np.concatenate([corner, corner + side], 1), dtype=torch.float32).view(count, 4)
    y, x = torch.meshgrid(torch.arange(within[0]) + 0.5, torch.arange(within[1]) + 0.5, indexing="ij")
    masks = torch.zeros(count, *within, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        mask.copy_((2 * (x - x1) / (x2 - x1) - 1).square() + (2 * (y - y1) / (y2 - y1) - 1).square() <= 1)
    return Objects(boxes, torch.tensor(random.randint(0, CLASSES, count)), masks)


def batch(name: str) -> tuple[torch.Tensor, list[Frame], list[Objects]]:
    """Returns a training batch of BATCHES."""
    images = padded(*(size for size, _ in BATCHES[name]))
    within = (images.shape[2], images.shape[3])
    frames = [Frame(size, size) for size, _ in BATCHES[name]]
    return images, frames, [objects(size, count, within) for size, count in BATCHES[name]]
