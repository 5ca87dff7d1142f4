"""From the 21,841 classes of ImageNet-22K to the 1,000 of ImageNet-1K: which head rows belong to which class."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from timm.data import ImageNetInfo, RealLabelsImagenet
from torch import Tensor

CLASSES_22K = 21841
CLASSES_1K = 1000


@cache
def rows_of_1k() -> tuple[int, ...]:
    """Row of the released 22K heads for each ImageNet-1K class.

    The heads' order is timm's "imagenet-21k-goog" list without its two last synsets, which stand at 9205 and 15027.
    Class 850 (teddy bear) is in no 22K list; the published map gives it row 5564.
    """
    goog = ImageNetInfo("imagenet-21k-goog").label_names()
    order = goog[:CLASSES_22K]
    order[9205], order[15027] = goog[CLASSES_22K], goog[CLASSES_22K + 1]
    place = {synset: row for row, synset in enumerate(order)}
    return tuple(place.get(synset, 5564) for synset in ImageNetInfo("imagenet-1k").label_names())


def class_names_of(contents: Mapping[str, Any]) -> dict[str, Any]:
    """What a file tells of its classes, as data.sources.open_sources takes it.

    `class_names` where the file holds them; `usual_names`, the synsets of ImageNet-1K, where its head can be theirs.
    """
    sizes = {len(v) for group in (contents, *contents.values()) if isinstance(group, Mapping) for v in _heads(group)}
    synsets = ImageNetInfo("imagenet-1k").label_names() if sizes & {CLASSES_1K, CLASSES_22K} else None
    names = contents.get("class_names")
    return {"class_names": names if isinstance(names, list) else None, "usual_names": synsets}


def _heads(weights: Mapping[str, Any]) -> list[Tensor]:
    ends = ("head.weight", "head.fc.weight", "classifier.weight", "fc.weight")
    heads = [value for name, value in weights.items() if isinstance(name, str) and name.endswith(ends)]
    return [value for value in heads if isinstance(value, Tensor) and value.ndim == 2]


def real_labels() -> dict[str, list[int]]:
    """ImageNet-ReaL: file name of a validation image -> its valid classes."""
    return RealLabelsImagenet([""] * 50_000).real_labels


def map_head(weight: Tensor) -> Tensor:
    """Rows of a 22K head's weight or bias (21841, ...) for the 1K classes: (1000, ...)."""
    return weight[torch.tensor(rows_of_1k())]
